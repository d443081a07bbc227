//! Version 0.13 of reqwest for the Delta kernel's engine, which is the only one to ask for it: it gets version 0.12,
//! which `object_store` needs anyway and which offers all that the engine calls.
//!
//! A second HTTP client would bring a second implementation of cryptography, AWS-LC, whose C alone takes longer to
//! compile than both clients. Remove this when `object_store` and the kernel agree on a version.

pub use reqwest_0_12::*;
