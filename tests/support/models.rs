//! Models that differ from the built-in one.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The built-in model in a directory of its own, with another configuration.
pub(crate) fn model(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sentiment");
    let directory = folder.join(name);
    std::fs::create_dir(&directory).unwrap();
    for file in ["model.onnx", "tokenizer.json"] {
        std::fs::copy(built_in.join(file), directory.join(file)).unwrap();
    }
    let config = std::fs::read(built_in.join("config.json")).unwrap();
    let mut config = serde_json::from_slice(&config).unwrap();
    change(&mut config);
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    directory
}

/// The built-in model, which says negative where that says positive, and the other way round.
pub(crate) fn contrary(folder: &Path, name: &str) -> PathBuf {
    model(folder, name, |config| {
        config["id2label"] = json!({"0": "positive", "1": "neutral", "2": "negative"});
    })
}

/// The built-in model, which cannot take a text with a character that it does not know, such as ☃.
pub(crate) fn fussy(folder: &Path, name: &str) -> PathBuf {
    let directory = model(folder, name, |_| {});
    let path = directory.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["unk_token"] = "[NOT THERE]".into();
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    directory
}
