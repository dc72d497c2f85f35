//! What the user types into a conversation: edited on a terminal, read as it comes otherwise.

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use std::io::{BufRead, IsTerminal};

/// What was typed.
pub(super) enum Line {
    /// Something said, continued lines joined.
    Text(String),
    /// Ctrl-C where nothing was being written.
    Interrupted,
    /// Nothing more will come.
    End,
}

/// The user's lines. On a terminal they are edited: arrows, history of this conversation (it is written nowhere), Tab for
/// commands and for the file of `/save`.
pub(super) enum Lines {
    Terminal(Box<Editor<Commands, MemHistory>>),
    Piped,
}

impl Lines {
    /// Lines of standard input; `commands` are completed.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    pub(super) fn new(commands: &'static [&'static str]) -> anyhow::Result<Self> {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            return Ok(Self::Piped);
        }
        let config = Config::builder().auto_add_history(true).history_ignore_dups(true)?.build();
        let mut editor = Editor::with_history(config.clone(), MemHistory::with_config(&config))?;
        editor.set_helper(Some(Commands { commands, files: FilenameCompleter::new() }));
        Ok(Self::Terminal(Box::new(editor)))
    }

    /// Whether somebody sits there.
    pub(super) fn is_interactive(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line that says something. A line that ends in `\` goes on in the next one.
    ///
    /// # Errors
    /// When standard input cannot be read.
    pub(super) fn read(&mut self) -> anyhow::Result<Line> {
        let mut text = String::new();
        loop {
            let line = match self.line(if text.is_empty() { "> " } else { ". " })? {
                Line::Text(line) => line,
                Line::End if !text.trim().is_empty() => return Ok(Line::Text(text)),
                other => return Ok(other),
            };
            if let Some(begin) = line.strip_suffix('\\') {
                text.push_str(begin);
                text.push('\n');
                continue;
            }
            text.push_str(&line);
            if !text.trim().is_empty() {
                return Ok(Line::Text(text));
            }
            text.clear();
        }
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self {
            Self::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(error) => Err(anyhow::Error::new(error).context("the terminal cannot be read")),
            },
            Self::Piped => {
                let mut line = String::new();
                let is_end = std::io::stdin().lock().read_line(&mut line)? == 0;
                Ok(if is_end { Line::End } else { Line::Text(line.trim_end_matches(['\r', '\n']).to_owned()) })
            }
        }
    }
}

/// What Tab completes.
pub(super) struct Commands {
    commands: &'static [&'static str],
    files: FilenameCompleter,
}

impl Completer for Commands {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        if line.starts_with("/save ") {
            return self.files.complete_path(line, position);
        }
        let typed = &line[..position];
        let pairs = self.commands.iter().filter(|command| typed.starts_with('/') && command.starts_with(typed));
        let pair = |command: &&str| Pair { display: (*command).to_owned(), replacement: format!("{command} ") };
        Ok((0, pairs.map(pair).collect()))
    }
}

impl Hinter for Commands {
    type Hint = String;
}

impl Highlighter for Commands {}

impl Validator for Commands {}

impl Helper for Commands {}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn tab_completes_commands_and_the_file_to_save_to() {
        let history = MemHistory::new();
        let context = Context::new(&history);
        let commands = Commands { commands: &["/reset", "/save", "/system"], files: FilenameCompleter::new() };
        let complete = |line: &str| {
            let (start, pairs) = commands.complete(line, line.len(), &context).unwrap();
            (start, pairs.into_iter().map(|pair| pair.replacement).collect::<Vec<_>>())
        };
        assert_eq!(complete("/s"), (0, vec!["/save ".to_owned(), "/system ".to_owned()]));
        assert_eq!(complete("save").1, Vec::<String>::new(), "what is said to the model is left alone");
        let dir = tempfile::tempdir().unwrap();
        didact_core::files::write_atomic(dir.path().join("talk.jsonl"), b"").unwrap();
        let begun = format!("/save {}/ta", dir.path().display());
        let (start, found) = complete(&begun);
        assert_eq!(format!("{}{}", &begun[..start], found[0]), format!("/save {}/talk.jsonl", dir.path().display()));
    }
}
