//! Files, includes, the environment, and what YAML itself allows.

use super::*;

#[test]
fn includes_join_their_declarations_and_remember_their_own_lines() {
    let files = [
        (
            "weft.yaml",
            "include: [parts/a.yaml, parts/b.yaml]\nservices: { order: }\ngateway:\n  routes:\n    - { match: { path: /a }, to: { service: order } }\n",
        ),
        (
            "parts/a.yaml",
            "services: { user: }\ngateway:\n  routes:\n    - { match: { path: /b }, to: { service: user } }\n",
        ),
        ("parts/b.yaml", "include: ../weft.yaml\npolicies: { default: { deadline: 3s } }\n"),
    ];
    let loaded = load_texts(&files, &[]);
    // `parts/../weft.yaml` is another name of the root: its declarations are there twice.
    let twice = lines(&loaded.unwrap_err());
    assert_eq!(
        twice[0],
        "- there is no file parts/../weft.yaml | paths are seen from the file they are written in"
            .replace("- ", "parts/b.yaml:1:10 ")
    );

    let files = [files[0], files[1], ("parts/b.yaml", "include: a.yaml\npolicies: { default: { deadline: 3s } }\n")];
    let loaded = load_texts(&files, &[]).unwrap_or_else(|r| panic!("{r}"));
    let names: Vec<_> = loaded.snapshot.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["order", "user"]);
    assert_eq!(loaded.snapshot.gateway.routes.len(), 2);
    let deadline = loaded.explain("service", "order").unwrap().values[0].clone();
    assert_eq!((deadline.value.as_str(), deadline.from.as_str()), ("3s", "policies.default"));
    assert_eq!(deadline.at.unwrap().to_string(), "parts/b.yaml:2:34");
    assert_eq!(loaded.sources.paths().len(), 3);
}

#[test]
fn the_same_name_in_two_files_is_a_mistake_at_the_second() {
    let files = [
        ("weft.yaml", "include: more.yaml\nservices:\n  order:\napi: 127.0.0.1:1\n"),
        ("more.yaml", "services:\n  order:\napi: 127.0.0.1:2\nservces: {}\n"),
    ];
    assert_eq!(
        lines(&load_texts(&files, &[]).unwrap_err()),
        [
            "more.yaml:2:3 'order' is declared in two files | keep one of the two",
            "more.yaml:3:1 'api' is declared in two files | keep one of the two",
            "more.yaml:4:1 unknown key 'servces' in configuration | did you mean 'services'?",
        ]
    );
}

#[test]
fn a_file_that_is_not_there_is_named_where_it_is_included() {
    assert_eq!(
        mistakes("services: {}\ninclude: [none.yaml]\n"),
        ["2:11 there is no file none.yaml | paths are seen from the file they are written in"]
    );
    let report = load_texts(&[], &[]).unwrap_err();
    assert_eq!(lines(&report), ["- there is no file weft.yaml | name the file with -c FILE"]);
}

#[test]
fn a_file_over_the_limit_and_bytes_that_are_no_text_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weft.yaml");
    std::fs::write(&path, vec![b'#'; weft_core::limits::CONFIG_BYTES + 1]).unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("more than 4194304"));
    std::fs::write(&path, vec![b'#'; weft_core::limits::CONFIG_BYTES]).unwrap();
    assert!(load(&path).is_ok());
    std::fs::write(&path, b"services: {}\n# \xff\n").unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("is not UTF-8 text: line 2"));
    assert!(load(dir.path()).unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn environment_references_are_filled_in_with_defaults() {
    let text = "api: \"${HOST:-127.0.0.1}:${PORT}\"\nthreads: ${N}\nservices:\n  ${X}: # keys are names\n";
    let loaded = load_texts(&[("weft.yaml", &text[..text.find("services").unwrap()])], &[("PORT", "9"), ("N", "3")]);
    let settings = loaded.unwrap().settings;
    assert_eq!(settings.api.listen.to_string(), "127.0.0.1:9");
    assert_eq!(settings.threads, Some(3));

    let empty = load_texts(&[("weft.yaml", "api: ${A:-127.0.0.1:7}")], &[("A", "")]).unwrap();
    assert_eq!(empty.settings.api.listen.port(), 7);
    let literal = load_texts(&[("weft.yaml", "logs: { level: \"a$${B}c\" }")], &[("B", "no")]).unwrap();
    assert_eq!(literal.settings.logs.level, "a${B}c");
}

#[test]
fn environment_references_that_cannot_be_filled_in_are_mistakes() {
    assert_eq!(
        mistakes(
            "api: ${NONE}\nthreads: ${4X}\nlogs: { level: \"${OPEN\" }\nqueues: { q: { lease: \"${E:-soon}\" } }\n"
        ),
        [
            "1:6 the environment variable NONE is not set | set it, or write ${NONE:-default}",
            "2:10 '4X' is not the name of an environment variable | write ${NAME} or ${NAME:-default}",
            "3:16 '${' without '}' | write ${NAME} or ${NAME:-default}; $${ is a literal ${",
            "4:23 'soon' is not a duration | write it like 250ms, 10s, 1m30s, 2h or 7d",
        ]
    );
}

#[test]
fn broken_yaml_is_one_mistake_at_its_place() {
    let at = |text: &str| mistakes(text)[0].split(" | ").next().unwrap().to_owned();
    assert!(at("services:\n  a: { b: c\nqueues: 1").starts_with("3:"), "{}", at("services:\n  a: { b: c\nqueues: 1"));
    assert!(at("a: 'x").starts_with("1:"));
    assert_eq!(mistakes("a: 1\n--- \nb: 2\n"), ["2:1 a second document in one file | use include: for further files"]);
    assert_eq!(mistakes("queues: !!map {}\n"), ["1:9 YAML tags have no meaning here | leave the '!...' out"]);
    assert_eq!(mistakes("[a]: 1\n")[0], "1:1 a key is a single word | ");
    assert_eq!(
        mistakes("- a\n"),
        [
            "1:1 configuration is a map, found a list | its keys: include, services, policies, auth, gateway, queues, ..."
        ]
    );
}

#[test]
fn keys_written_twice_are_mistakes() {
    assert_eq!(
        mistakes("queues:\n  a: { lease: 1s, lease: 2s }\n  b:\n  a:\n"),
        ["2:19 'lease' is written twice | keep one of the two", "4:3 'a' is written twice | keep one of the two",]
    );
}

#[test]
fn anchors_are_followed_within_bounds() {
    let loaded = load_text("queues:\n  a: &q { lease: 7s }\n  b: *q\n").unwrap();
    assert_eq!(loaded.snapshot.queues[1].lease, Duration::from_secs(7));
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..10 {
        let one = format!("*a{}, ", i - 1);
        bomb += &format!("a{i}: &a{i} [{}]\n", one.repeat(10).trim_end_matches(", "));
    }
    assert!(mistakes(&bomb).iter().any(|m| m.contains("more than 200000 values")));
    let deep = format!("a: {}{}", "[".repeat(80), "]".repeat(80));
    assert!(mistakes(&deep)[0].contains("nested deeper than 64 levels"));
}
