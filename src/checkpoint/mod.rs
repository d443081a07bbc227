//! The durable state of all relations and positions at one epoch.
//!
//! - [`protocol`]: what a manifest says and what a restart has to do; pure.
//! - [`lease`]: who may write; its decisions are pure too.
//! - [`store`]: does it, on tables and manifests.
//! - [`crash`]: where tests end the process.

pub mod crash;
pub mod lease;
pub mod protocol;
pub mod store;
