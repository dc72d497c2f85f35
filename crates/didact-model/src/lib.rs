//! The crate's text goes here.
