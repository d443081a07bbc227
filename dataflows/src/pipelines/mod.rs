//! The pipelines, one a module; each says what it reads, what it derives and why.

pub mod mentions;
