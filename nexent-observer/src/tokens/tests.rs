//! The tokenizers behind the core's interface, against the libraries on whole texts.

use std::{fs, path::PathBuf, sync::OnceLock};

use super::*;

/// An encoding that is ready, made once for all tests.
fn ready(family: openai::Family) -> Arc<openai::Encoding> {
    static READY: OnceLock<[Arc<openai::Encoding>; 2]> = OnceLock::new();
    let all = READY.get_or_init(|| {
        [openai::Encoding::o200k(), openai::Encoding::cl100k()].map(|encoding| {
            assert!(encoding.make_ready());
            Arc::new(encoding)
        })
    });
    Arc::clone(&all[usize::from(family == openai::Family::Cl100k)])
}

/// The count of a text that comes in pieces of these lengths, as the core asks for it.
fn in_pieces(tokenizer: &dyn Tokenizer, text: &str, mut next: impl FnMut() -> usize) -> u64 {
    let (mut pending, mut sum, mut begins, mut rest) = (String::new(), 0, true, text);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(next().max(1).min(rest.len())));
        let from = pending.len();
        pending.push_str(piece);
        rest = after;
        let cut = tokenizer.settled(&pending, from);
        if cut > 0 {
            sum += tokenizer.count(&pending[..cut], begins).unwrap();
            pending.drain(..cut);
            begins = false;
        }
    }
    sum + if pending.is_empty() { 0 } else { tokenizer.count(&pending, begins).unwrap() }
}

/// Texts of the parts that the regular expressions of tokenizers look at.
fn random_text(random: &mut fastrand::Rng) -> String {
    const PARTS: [&str; 44] = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "a",
        "The",
        "word",
        "WORD",
        "camelCase",
        "x",
        "'",
        "'s",
        "'LL",
        "’",
        "1",
        "12345",
        ".",
        ",",
        "...",
        "/",
        "//\n",
        "(",
        "){",
        "\"",
        "$",
        "+=",
        "_",
        "é",
        "ß",
        "Ñ",
        "e\u{301}",
        "Привет",
        "你好",
        "，",
        "。",
        "の",
        "カ",
        "안녕",
        "👩‍💻",
        "\u{a0}",
        "\u{2028}",
        "<|endoftext|>",
    ];
    (0..random.usize(0..30)).map(|_| PARTS[random.usize(0..PARTS.len())]).collect()
}

fn whole(family: openai::Family, text: &str) -> u64 {
    let bpe = match family {
        openai::Family::O200k => tiktoken_rs::o200k_base_singleton(),
        openai::Family::Cl100k => tiktoken_rs::cl100k_base_singleton(),
    };
    bpe.encode_ordinary(text).len() as u64
}

#[test]
fn wherever_a_text_is_cut_the_count_is_that_of_the_whole() {
    let mut random = fastrand::Rng::with_seed(20);
    for family in [openai::Family::O200k, openai::Family::Cl100k] {
        let tokenizer = ready(family);
        for _ in 0..3000 {
            let text = random_text(&mut random);
            let want = whole(family, &text);
            for longest in [1, 2, 7, 40] {
                let got = in_pieces(&*tokenizer, &text, || random.usize(1..=longest));
                assert_eq!(got, want, "{family:?} {text:?} in pieces of up to {longest}");
            }
        }
    }
}

#[test]
fn the_counts_are_those_of_openais_own_library() {
    // By tiktoken 0.x (Python), as its README and OpenAI's cookbook print them.
    for (text, cl100k, o200k) in
        [("tiktoken is great!", 6, 6), ("antidisestablishmentarianism", 6, 6), ("2 + 2 = 4", 7, 7)]
    {
        assert_eq!(ready(openai::Family::Cl100k).count(text, true), Some(cl100k), "{text}");
        assert_eq!(ready(openai::Family::O200k).count(text, true), Some(o200k), "{text}");
    }
}

#[test]
fn a_word_that_is_looked_up_has_the_count_of_the_library() {
    for family in [openai::Family::O200k, openai::Family::Cl100k] {
        let tokenizer = ready(family);
        for word in [
            "hello",
            " hello",
            " Hello",
            "Hello",
            " zq",
            " xqzvw",
            "a",
            " a",
            " ",
            "",
            "iPhone",
            " incomprehensibilities",
        ] {
            assert_eq!(tokenizer.count(word, false), Some(whole(family, word)), "{family:?} {word:?}");
        }
    }
}

#[test]
fn hostile_texts_of_the_longest_kind_are_counted_and_do_no_harm() {
    const LONG: usize = nexent_observer_core::limits::TOKENIZER_PENDING_BYTES;
    for family in [openai::Family::O200k, openai::Family::Cl100k] {
        for unit in [" ", "\n", " \n", "a", "A", "aA", "'s", "'", "1", ".", "\u{301}", "👩‍💻", "\u{0}", "\t ", "\u{a0}"]
        {
            let text = unit.repeat(LONG / unit.len());
            assert!(ready(family).count(&text, false).is_some_and(|n| n > 0), "{family:?} {unit:?}");
        }
    }
}

#[test]
fn models_are_known_by_their_names() {
    use openai::Family::{Cl100k, O200k};
    for (model, want) in [
        ("gpt-4o", Some(O200k)),
        ("gpt-4o-mini-2024-07-18", Some(O200k)),
        ("openai/gpt-4.1-mini", Some(O200k)),
        ("openai/gpt-oss-20b", Some(O200k)),
        ("gpt-5-nano", Some(O200k)),
        ("o3", Some(O200k)),
        ("gpt-4-0613", Some(Cl100k)),
        ("gpt-35-turbo", Some(Cl100k)),
        ("claude-sonnet-4", None),
        ("qwen2.5-7b-instruct", None),
        ("ada", None),
        ("", None),
        ("/", None),
    ] {
        assert_eq!(openai::family(model), want, "{model}");
    }
}

#[test]
fn patterns_name_models() {
    for (pattern, model, fits) in [
        ("qwen*", "Qwen2.5-7B", true),
        ("qwen*", "my-qwen", false),
        ("*qwen*", "Qwen/Qwen2.5", true),
        ("*-instruct", "llama-instruct", true),
        ("*-instruct", "llama-instruct-2", false),
        ("exact", "EXACT", true),
        ("exact", "exactly", false),
        ("*", "", true),
    ] {
        assert_eq!(Pattern::parse(pattern).unwrap().fits(model), fits, "{pattern} {model}");
    }
    for bad in ["", "a*b", "***"] {
        assert_eq!(Pattern::parse(bad), None, "{bad}");
    }
}

/// A small tokenizer file: BPE on bytes with the merges for a few words, as GPT-2 is made, or with another way to find pieces.
fn small(pre_tokenizer: &str, normalizer: &str) -> String {
    let mut vocab: Vec<String> = (0x21u8..0x7f).map(|byte| (byte as char).to_string()).collect();
    vocab.extend(["Ġ", "Ċ", "▁", "he", "ll", "hell", "hello", "Ġw", "Ġwo", "▁w", "▁wo", "s.", "▁h"].map(str::to_owned));
    let vocab: serde_json::Map<String, serde_json::Value> =
        vocab.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "▁ w", "▁w o", "s .", "▁ h"].map(str::to_owned);
    let text = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": serde_json::from_str::<serde_json::Value>(normalizer).unwrap(),
        "pre_tokenizer": serde_json::from_str::<serde_json::Value>(pre_tokenizer).unwrap(),
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    });
    text.to_string()
}

const BYTE_LEVEL: &str = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
/// As Llama 2 and Mistral have it: a mark for a space before everything, and pieces that only the merges know.
const PREPENDS: &str = r#"{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]}"#;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("nexent-observer-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[test]
fn a_tokenizer_from_a_file_counts_the_same_however_the_text_is_cut() {
    let dir = Dir::new("tokenizer-file");
    let mut random = fastrand::Rng::with_seed(21);
    for (name, text) in [("bytes.json", small(BYTE_LEVEL, "null")), ("marks.json", small("null", PREPENDS))] {
        let path = dir.file(name, &text);
        let tokenizer = file::FileTokenizer::load(&path).unwrap();
        let library = tokenizers::Tokenizer::from_file(&path).unwrap();
        for _ in 0..300 {
            let text: String = (0..random.usize(1..12))
                .map(|_| ["hello", " hello", " wo", "s.", "x", " ", ",", "\n", " h", "he"][random.usize(0..10)])
                .collect();
            let want = library.encode(text.as_str(), false).unwrap().get_ids().len() as u64;
            assert_eq!(in_pieces(&tokenizer, &text, || random.usize(1..9)), want, "{name} {text:?}");
        }
    }
}

#[test]
fn files_that_are_no_tokenizers_are_refused_with_a_word_about_why() {
    let dir = Dir::new("tokenizer-refused");
    let load = |name: &str, text: &str| file::FileTokenizer::load(&dir.file(name, text)).unwrap_err().to_string();
    assert!(load("a.json", "{}").contains("a.json is no tokenizer"));
    assert!(load("b.json", "not json").contains("tokenizer.json of a model"));
    let missing = file::FileTokenizer::load(&dir.0.join("missing.json")).unwrap_err().to_string();
    assert!(missing.contains("cannot be read"), "{missing}");
    // Words end with the mark for the space behind them: no text can be counted piece by piece.
    let replaces = r#"{"type":"Replace","pattern":{"String":" "},"content":"▁"}"#;
    let over = small("null", replaces).replace("▁ h", "e ▁").replace("▁h", "e▁");
    assert!(load("c.json", &over).contains("piece by piece"));
}

#[test]
fn a_file_of_the_user_goes_before_what_is_built_in() {
    let dir = Dir::new("tokenizer-order");
    let path = dir.file("t.json", &small(BYTE_LEVEL, "null"));
    let file = ModelFile { models: Pattern::parse("gpt-4o*").unwrap(), path };
    let known = Known::load(&[file]).unwrap();
    let count = |model: &str| known.of_model(model).map(|tokenizer| tokenizer.count("zq", true));
    assert_eq!(count("gpt-4o-mini"), Some(Some(2)));
    assert_eq!(count("unknown"), None);
    // Made ready in the background, so not at once but soon.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while count("gpt-4.1") != Some(Some(whole(openai::Family::O200k, "zq"))) {
        assert!(std::time::Instant::now() < end, "the encoding was never ready");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
