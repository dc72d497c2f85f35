//! The named recipes, each a TOML file that a user can copy and edit.

/// What a recipe applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Teach a small model to call tools, and show before and after.
    Quickstart,
    /// Supervised fine-tuning on the user's rows.
    Sft,
    /// Next-token training on the user's text.
    ContinuePretrainingText,
}

/// A recipe that ships with the program.
#[derive(Debug, Clone, Copy)]
pub struct NamedRecipe {
    /// Its name, which is also the value of the key `recipe`.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// The TOML file, with comments.
    pub text: &'static str,
    /// What it applies.
    pub method: Method,
}

const RECIPES: [NamedRecipe; 3] = [
    NamedRecipe {
        name: "quickstart",
        summary: "teach SmolLM2-135M-Instruct to call tools described in its prompt; before and after",
        text: include_str!("../../../recipes/quickstart.toml"),
        method: Method::Quickstart,
    },
    NamedRecipe {
        name: "sft",
        summary: "supervised fine-tuning on your own chats, instructions or prompt/completion pairs",
        text: include_str!("../../../recipes/sft.toml"),
        method: Method::Sft,
    },
    NamedRecipe {
        name: "continue-pretraining-text",
        summary: "next-token training on your own text; held-out perplexity before and after",
        text: include_str!("../../../recipes/continue-pretraining-text.toml"),
        method: Method::ContinuePretrainingText,
    },
];

/// All named recipes, in the order to show them.
pub fn recipes() -> &'static [NamedRecipe] {
    &RECIPES
}

/// The recipe of that name.
pub fn named_recipe(name: &str) -> Option<&'static NamedRecipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}
