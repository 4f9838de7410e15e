//! Rule `corpus`: nothing of the recorded exchanges that some tests replay gets into the project.
//!
//! The recordings (`NEXENT_OBSERVER_CORPUS`, else `../shared/corpus` beside the checkout or beside its parent) belong to somebody
//! else. They are told by the identifiers in them: no one writes `chatcmpl-` and 29 random characters by chance.

use std::{collections::HashSet, env, fs, path::PathBuf};

use anyhow::{Context, Result};

use super::{
    report::{Outcome, Problem},
    tree::Tree,
};

/// Shortest identifier that counts, in bytes.
const SHORTEST: usize = 24;

/// The rule over the checkout.
pub(super) fn rule(tree: &Tree) -> Result<Outcome> {
    let Some(folder) = folder(tree) else {
        return Ok(Outcome::NotRun("the recordings are not at hand (NEXENT_OBSERVER_CORPUS)".to_owned()));
    };
    let mut known = HashSet::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for line in text.lines() {
            known.extend(identifiers_of_recording(line));
        }
    }
    Ok(Outcome::Checked(tree.files().filter_map(|(path, text)| taken(path, text, &known)).collect()))
}

fn folder(tree: &Tree) -> Option<PathBuf> {
    let beside = tree.root().ancestors().skip(1).take(2).map(|folder| folder.join("shared/corpus"));
    let given = env::var_os("NEXENT_OBSERVER_CORPUS").map(PathBuf::from);
    let folder = |path: PathBuf| if path.is_file() { path.parent().map(PathBuf::from) } else { Some(path) };
    given.into_iter().chain(beside).filter_map(folder).find(|path| path.is_dir())
}

/// Identifiers of one line of the recordings: of its text, and of its body, which is base64.
fn identifiers_of_recording(line: &str) -> Vec<String> {
    let body = serde_json::from_str::<serde_json::Value>(line)
        .ok()
        .and_then(|recording| Some(decode(recording.pointer("/response/body_base64")?.as_str()?)))
        .unwrap_or_default();
    let body = String::from_utf8_lossy(&body);
    let with_body = |text: &str| identifiers(text).map(str::to_owned).collect::<Vec<_>>();
    // Base64 itself is one long random word to anyone who looks for random words, and is as good a sign.
    [with_body(line), with_body(&body)].concat()
}

/// The first identifier that the file shares with the recordings.
fn taken(path: &str, text: &str, known: &HashSet<String>) -> Option<Problem> {
    let (line, id) = (1..).zip(text.lines()).find_map(|(number, line)| {
        let id = identifiers(line).find(|id| known.contains(*id))?;
        Some((number, id))
    })?;
    let place = format!("{path}:{line}");
    Some(Problem::new(place, format!("holds {id}, which is from the recordings"), "write a fixture of your own"))
}

/// Words that look random: long, with upper case, lower case and digits, or a UUID.
fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.split(move |c| !is_part(c)).filter(|word| {
        let has = |test: fn(&char) -> bool| word.chars().filter(test).count();
        let mixed =
            has(char::is_ascii_uppercase) >= 3 && has(char::is_ascii_lowercase) >= 3 && has(char::is_ascii_digit) >= 2;
        word.len() >= SHORTEST && (mixed || is_uuid(word))
    })
}

fn is_uuid(word: &str) -> bool {
    let lengths: Vec<usize> = word.split('-').map(str::len).collect();
    let random = word.chars().collect::<HashSet<char>>().len() >= 10;
    lengths == [8, 4, 4, 4, 12] && random && word.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// Base64 to bytes; what is no base64 is left out.
fn decode(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0_u32, 0_u32);
    for digit in text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte)) {
        held = (held << 6 | digit as u32) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{decode, identifiers, identifiers_of_recording, taken};

    #[test]
    fn base64_is_decoded() {
        assert_eq!(decode("SGVsbG8="), b"Hello");
        assert_eq!(decode("SGVsbG8hIQ=="), b"Hello!!");
    }

    #[test]
    fn random_words_are_identifiers_and_names_are_not() {
        let found = |text| identifiers(text).count();
        assert_eq!(found("\"id\":\"chatcmpl-Q7wErTy9UiOp3AsDf5GhJk\""), 1);
        assert_eq!(found("0a1b2c3d-4e5f-6789-abcd-ef0123456789"), 1);
        assert_eq!(found("00000000-0000-0000-0000-000000000001"), 0);
        assert_eq!(
            found("claude-3-5-sonnet-20240620 a_test_name_that_is_quite_long RATE_LIMIT_REMAINING_REQUESTS_2"),
            0
        );
    }

    #[test]
    fn a_file_that_shares_an_identifier_with_the_text_or_body_of_a_recording_is_refused() {
        let text = "req_Q7wErTy9UiOp3AsDf5GhJk";
        let body = "id-Zx1Cv2Bn3Ma4Sd5Fg6Hj7Kl8"; // in base64 below
        let line = format!(
            r#"{{"response":{{"headers":{{"id":"{text}"}},"body_base64":"{}"}}}}"#,
            "aWQtWngxQ3YyQm4zTWE0U2Q1Rmc2SGo3S2w4"
        );
        let known: HashSet<String> = identifiers_of_recording(&line).into_iter().collect();
        for id in [text, body] {
            let problem = taken("a.json", &format!("{{\n \"x\": \"{id}\"}}"), &known).unwrap();
            assert!(problem.to_string().starts_with("a.json:2: "), "{problem}");
        }
        assert_eq!(taken("a.json", "{\"x\": \"req_Aa1Aa2Aa3Aa4Aa5Aa6Aa7Aa8\"}", &known), None);
    }
}
