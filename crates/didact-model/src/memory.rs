//! Predicted memory.
