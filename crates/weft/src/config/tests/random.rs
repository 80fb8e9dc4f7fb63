//! Whatever the bytes, the loader answers.

use proptest::prelude::*;

use super::*;

/// A line of the example, to be put somewhere else.
fn pieces() -> Vec<String> {
    std::fs::read_to_string(EXAMPLE).unwrap().lines().map(str::to_owned).collect()
}

fn answer(text: &[u8]) {
    let read = |_: &Path| Ok(text.to_vec());
    let input = Input { read: &read, env: &|_| None };
    if let Err(report) = load_from(Path::new("weft.yaml"), &input) {
        assert!(!report.mistakes().is_empty(), "refused without a reason");
        // Drawing must survive any place too.
        assert!(report.render(true).contains("mistake"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        answer(&bytes);
    }

    #[test]
    fn arbitrary_text_of_yaml_characters_never_panics(text in "[a-z0-9:{}\\[\\],&*!|>'\"#%@`? \n\t\\-\\\\$~é.(/]{0,300}") {
        answer(text.as_bytes());
    }

    #[test]
    fn the_example_with_lines_moved_lost_and_cut_never_panics(
        order in proptest::collection::vec((0usize..150, 0usize..200), 1..60)
    ) {
        let pieces = pieces();
        let text: Vec<String> = order
            .iter()
            .map(|(line, cut)| pieces[line % pieces.len()].chars().take(*cut).collect())
            .collect();
        answer(text.join("\n").as_bytes());
    }

    #[test]
    fn the_example_with_bytes_changed_never_panics(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        let mut bytes = std::fs::read(EXAMPLE).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        answer(&bytes);
    }
}
