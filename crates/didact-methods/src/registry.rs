//! The named recipes, each a TOML file that a user can copy and edit.

/// What a recipe applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Teach a small model to call tools, and show before and after.
    Quickstart,
    /// Supervised fine-tuning on the user's rows.
    Sft,
    /// Learning from pairs of answers.
    Dpo,
    /// Next-token training on the user's text.
    ContinuePretrainingText,
    /// New text without forgetting old: re-warming, decay, replay.
    Continual,
    /// Rows of one length per step, from short to long.
    Decomposition,
    /// Skills chosen by what they help with.
    SkillIt,
    /// Near-zero loss on very little text.
    Hyperfitting,
    /// Next-token training on the user's text, and what examples in the prompt add before and after.
    FewShot,
    /// Several sources by weights, or easy rows first.
    Mixture,
    /// Answers, sampled anew in every round and judged by a program, ranked.
    Itertl,
    /// Requests that the model can just about answer, and its own attempts to check.
    Toolace,
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

const RECIPES: [NamedRecipe; 12] = [
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
        name: "dpo",
        summary: "learning from pairs of a better and a worse answer (chosen/rejected): DPO, IPO, SimPO or ORPO",
        text: include_str!("../../../recipes/dpo.toml"),
        method: Method::Dpo,
    },
    NamedRecipe {
        name: "continue-pretraining-text",
        summary: "next-token training on your own text; held-out perplexity before and after",
        text: include_str!("../../../recipes/continue-pretraining-text.toml"),
        method: Method::ContinuePretrainingText,
    },
    NamedRecipe {
        name: "continual-pretraining",
        summary: "new text without forgetting the old: replay, re-warming and decay; old and new loss before and after",
        text: include_str!("../../../recipes/continual-pretraining.toml"),
        method: Method::Continual,
    },
    NamedRecipe {
        name: "dataset-decomposition",
        summary: "documents in rows of one length per step, from short to long: no padding, no strangers in a row",
        text: include_str!("../../../recipes/dataset-decomposition.toml"),
        method: Method::Decomposition,
    },
    NamedRecipe {
        name: "skill-it",
        summary: "rows with a skill column, mixed by which skill helps which and what is still badly known",
        text: include_str!("../../../recipes/skill-it.toml"),
        method: Method::SkillIt,
    },
    NamedRecipe {
        name: "hyperfitting",
        summary: "near-zero loss on very little text, so that greedy text no longer loops; diversity before and after",
        text: include_str!("../../../recipes/hyperfitting.toml"),
        method: Method::Hyperfitting,
    },
    NamedRecipe {
        name: "few-shot-evaluation",
        summary: "next-token training on your own text; tasks asked with 0, 1 and 8 examples before and after",
        text: include_str!("../../../recipes/few-shot-evaluation.toml"),
        method: Method::FewShot,
    },
    NamedRecipe {
        name: "mixture",
        summary: "several sources by weights that stand still or follow a path, or one source with easy rows first",
        text: include_str!("../../../recipes/mixture.toml"),
        method: Method::Mixture,
    },
    NamedRecipe {
        name: "itertl",
        summary: "rounds: the model answers, a program judges (tests, a simulator, a checker), and it learns to rank its answers",
        text: include_str!("../../../recipes/itertl.toml"),
        method: Method::Itertl,
    },
    NamedRecipe {
        name: "toolace-r",
        summary: "rounds: requests that the model can just about answer are learned, and to check its own tool calls",
        text: include_str!("../../../recipes/toolace-r.toml"),
        method: Method::Toolace,
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
