//! Reading relations while they change: every answer is of one epoch, which it states.
//!
//! - [`peek`]: a query as data: it goes to all workers and its parts come back.
//! - [`sql`]: SQL over peeks; [`past`]: SQL over earlier versions of the tables.
//! - [`http`]: both, and health and metrics, over HTTP; [`client`]: its other side.

pub mod client;
pub mod http;
pub mod past;
pub mod peek;
pub mod sql;
