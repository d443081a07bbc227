//! Where messages come from and where tables lie: each source and each sink in a module of its own.
//!
//! A connector carries bytes and positions; what the bytes mean is not known here.
//!
//! - [`message`]: the one shape of all sources.
//! - [`files`]: a folder of JSON and JSON-lines files.
//! - [`kafka`]: partitions of topics.
//! - [`registry`]: the schemas that messages are written with.
//! - [`delta`]: Delta tables, and the manifests that commit them together.
//! - [`postgres`]: rows written to a database, to try a pipeline out.

pub mod delta;
pub mod files;
pub mod kafka;
pub mod message;
pub mod postgres;
pub mod registry;
mod web;
