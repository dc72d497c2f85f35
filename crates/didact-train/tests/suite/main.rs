//! Training as a whole: one program, so that it is linked once.

mod curriculum;
mod golden;
mod preference;
mod resume;
mod support;
mod training;
