//! Pipelines as incremental dataflows: every relation follows its source, change by change.
//!
//! The crate knows epochs and rows, and nothing of where messages come from or where tables lie.
//! A pipeline asks [`ports::Ports`] for its source, its model, its sinks and its indexes by name;
//! the program around it decides what stands behind each name.
//!
//! - [`change`], [`record`], [`reject`], [`envelope`], [`ports`]: the words of a pipeline.
//! - [`index`]: how relations are read while they change.
//! - [`intake`]: the way of messages into it; [`transactions`]: what of them is held back.
//! - [`operators`]: one verb, one file; they know nothing of tweets.
//! - [`pipelines`]: one pipeline, one module.

pub mod change;
pub mod envelope;
pub mod index;
pub mod intake;
pub mod operators;
pub mod pipelines;
pub mod ports;
pub mod record;
pub mod reject;
pub mod transactions;
