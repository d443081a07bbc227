//! The durable state of all relations and positions at one epoch.
//!
//! - [`protocol`]: what a manifest says and what a restart has to do; pure.
//! - [`store`]: does it, on tables and manifests.

pub mod protocol;
pub mod store;
