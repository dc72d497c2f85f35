//! Named recipes and, file by file, published methods.
#![forbid(unsafe_code)]

pub mod toolworld;
