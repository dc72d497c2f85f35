//! Whose move it is after an error: the one classification that exit codes are made from.

/// What kind of trouble an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Usage, configuration or an input file is wrong; the user can mend it (exit code 2).
    Input,
    /// Something failed while running: disk, memory, network, a numeric failure (exit code 1).
    Running,
    /// What was asked was checked and is not so (exit code 3).
    NotSo,
    /// The user asked for a stop and everything is saved (exit code 130).
    Stopped,
}

/// Errors that know their [`Fault`]. Every error enum of the library crates implements this.
pub trait Classify: std::error::Error + Send + Sync + 'static {
    /// Whose move it is.
    fn fault(&self) -> Fault;

    /// What the user can do about it, when there is something to say beyond the message itself.
    fn hint(&self) -> Option<String> {
        None
    }
}
