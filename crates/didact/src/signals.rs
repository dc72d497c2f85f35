//! Ctrl-C and SIGTERM: the first asks the work to stop at the next safe point, the second ends the program at once.
#![expect(clippy::print_stderr, reason = "the answer to a key press goes to the terminal")]

use didact_core::cancel::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicI32, Ordering};

/// The first signal that arrived; 0 before that.
static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// From now on signals raise `cancel` instead of ending the program.
///
/// # Errors
/// When the operating system refuses.
pub(crate) fn watch(cancel: &Cancel) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let cancel = cancel.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if RECEIVED.swap(signal, Ordering::SeqCst) != 0 {
                signal_hook::low_level::exit(128 + signal);
            }
            cancel.cancel();
            // A bar may stand on the line.
            let start = if std::io::stderr().is_terminal() { "\n" } else { "" };
            eprintln!("{start}stopping after this step; once more ends the program at once");
        }
    })?;
    Ok(())
}

/// The exit code of a stop: 130 for Ctrl-C, 143 for SIGTERM.
pub(crate) fn exit_code() -> u8 {
    if RECEIVED.load(Ordering::SeqCst) == SIGTERM { 143 } else { 130 }
}
