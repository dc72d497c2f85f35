//! `didact recipes`: the named recipes, to run or to copy.

use crate::output::{Output, Status, usage};
use clap::Subcommand;
use didact_core::files;
use didact_core::progress::Table;
use didact_methods::{NamedRecipe, load_recipe, named_recipe, recipes};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// `didact recipes ...`
#[derive(Debug, Subcommand)]
pub(crate) enum RecipesCommand {
    /// List the named recipes
    #[command(after_help = "Example:\n  didact recipes list")]
    List,
    /// Print a named recipe
    #[command(after_help = "Example:\n  didact recipes show sft")]
    Show {
        /// The recipe's name
        name: String,
    },
    /// Write a named recipe to a file of your own
    #[command(after_help = "Example:\n  didact recipes copy sft mine.toml && didact run mine.toml")]
    Copy {
        /// The recipe's name
        name: String,
        /// The file to make, or a directory to put it into
        dest: PathBuf,
    },
}

#[derive(Serialize)]
struct RecipeRow {
    name: &'static str,
    summary: &'static str,
}

#[derive(Serialize)]
struct ShownRecipe {
    name: &'static str,
    summary: &'static str,
    text: &'static str,
}

#[derive(Serialize)]
struct CopiedRecipe<'a> {
    name: &'static str,
    path: &'a Path,
}

pub(crate) fn run(command: RecipesCommand, output: &Output) -> anyhow::Result<Status> {
    match command {
        RecipesCommand::List => list(output)?,
        RecipesCommand::Show { name } => {
            let NamedRecipe { name, summary, text, .. } = find(&name)?;
            output.result(&ShownRecipe { name, summary, text }, || text.trim_end().to_owned())?;
        }
        RecipesCommand::Copy { name, dest } => copy(find(&name)?, &dest, output)?,
    }
    Ok(Status::Done)
}

fn list(output: &Output) -> anyhow::Result<()> {
    let rows: Vec<_> =
        recipes().iter().map(|recipe| RecipeRow { name: recipe.name, summary: recipe.summary }).collect();
    output.result(&rows, || {
        output.table(&Table {
            title: String::new(),
            columns: ["recipe", "what it does"].map(str::to_owned).to_vec(),
            rows: rows.iter().map(|row| [row.name, row.summary].map(str::to_owned).to_vec()).collect(),
        })
    })
}

fn find(name: &str) -> anyhow::Result<&'static NamedRecipe> {
    match named_recipe(name) {
        Some(recipe) => Ok(recipe),
        // Loading it fails with the nearest names.
        None => match load_recipe(name, &[]) {
            Err(error) => Err(error.into()),
            Ok(_) => Err(usage(format!("`{name}` is a file, not a named recipe"), "see `didact recipes list`")),
        },
    }
}

fn copy(recipe: &'static NamedRecipe, dest: &Path, output: &Output) -> anyhow::Result<()> {
    let path = if dest.is_dir() { dest.join(format!("{}.toml", recipe.name)) } else { dest.to_owned() };
    if path.exists() {
        return Err(usage(
            format!("`{}` exists already", path.display()),
            "name another file, or remove this one; nothing was written",
        ));
    }
    files::write_atomic(&path, recipe.text.as_bytes())?;
    output.result(&CopiedRecipe { name: recipe.name, path: &path }, || {
        format!("{}\nedit it, then: didact run {}", path.display(), path.display())
    })
}
