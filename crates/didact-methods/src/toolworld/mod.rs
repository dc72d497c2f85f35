//! ToolWorld-mini: requests in English and the tool call that each of them asks for, made from a seed.
//!
//! A world is a catalogue of tools, each the pair of a verb and a noun with one to four parameters ([`World`]). A request
//! names the tool through synonyms and gives a value for each supplied parameter, *directly* (`for fri`) or to be
//! *derived* (`for the day before fri`, `twice 6`, `cheap`). Because text and call come from one draw, the right call is
//! known exactly, and every difference from it can be named by [`didact_verify::tool_call`].
//!
//! Tools may be held out: for each verb, some nouns appear in no training sample, neither asked for nor listed. A model
//! that calls those tools has learned to read the signatures in its prompt, not a list of names.
//!
//! Start at [`World::new`], then [`World::draw`], then [`Sample::messages`].

mod catalogue;
mod request;
mod values;
mod vocabulary;

pub use catalogue::{Docs, LevelMix, ParameterSpec, Pool, ToolSpec, World, WorldConfig, WorldError};
pub use request::{Level, Sample, Style, Supplied, listing};
pub use values::{Phrase, derive};
pub use vocabulary::{DAYS, Kind};

#[cfg(test)]
mod tests;
