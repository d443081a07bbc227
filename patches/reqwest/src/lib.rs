//! reqwest 0.12 under the version number 0.13, for the Delta kernel's engine.
//!
//! The engine is the only crate that asks for 0.13, and 0.12, which `object_store` needs anyway, has all the functions
//! that it calls. A second HTTP client would also bring AWS-LC, a second implementation of cryptography. Remove this
//! crate when `object_store` and the kernel agree on a version.

pub use reqwest_0_12::*;
