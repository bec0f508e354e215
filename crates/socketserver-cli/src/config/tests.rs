//! Tests for the combination of a file and a command line.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::reload::{Effect, effect};
use super::{Start, StartError, built, settings, start};

fn started(config: &str, args: &[&str]) -> Result<Start, StartError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.toml");
    std::fs::write(&path, config).unwrap();
    let argv: Vec<OsString> = std::iter::once("socketserver")
        .chain(args.iter().copied())
        .map(OsString::from)
        .chain(["--config".into(), path.into()])
        .collect();
    start(&argv)
}

fn in_force(config: &str, args: &[&str]) -> String {
    let start = started(config, args).unwrap();
    start.effective.unwrap().to_toml().unwrap()
}

fn refused(config: &str, args: &[&str]) -> String {
    match started(config, args).unwrap_err() {
        StartError::Config(error) => {
            let error = error.to_string();
            let place = error.find("s.toml").unwrap();
            error[place..].to_owned()
        }
        StartError::UsageError(error) => panic!("{error}"),
    }
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "{line}: {text}");
}

#[test]
fn command_line_precedes_table_and_table_precedes_top_level() {
    let config = "
        listen = ['tcp://127.0.0.1:1', 'tcp://127.0.0.1:2']
        idle-timeout = '1m'
        max-per-peer = 20
        rate = 5
        log-level = 'warn'
        [chat]
        framing = 'lines'
        rate = '6:7'
        deny = ['10.0.0.0/8', '::1']
        [upper]
        rate = 8
    ";
    let args = [
        "--log-format",
        "json",
        "chat",
        "--max-per-peer",
        "3",
        "-l",
        "tcp://127.0.0.1:3",
    ];
    let text = in_force(config, &args);
    has(&text, "listen = [\"tcp://127.0.0.1:3\"]");
    has(&text, "idle-timeout = \"1m\"");
    has(&text, "max-per-peer = 3");
    has(&text, "rate = \"6:7\"");
    has(&text, "deny = [\"10.0.0.0/8\", \"::1\"]");
    has(&text, "framing = \"lines\"");
    has(&text, "log-level = \"warn\"");
    has(&text, "log-format = \"json\"");
    has(&text, "# allow is not set");
    has(&text, "# concurrency = \"threading\" is the default");
    // A global option before the name of the program is equivalent.
    has(
        &in_force(config, &["--log-level", "off", "chat"]),
        "log-level = \"off\"",
    );
    has(&in_force(config, &["upper"]), "rate = 8");
}

#[test]
fn required_options_may_come_from_the_other_source() {
    let text = in_force("output = '/dev/null'", &["collect", "--rotate", "1MiB"]);
    has(&text, "rotate = \"1MiB\"");
    let text = in_force(
        "rotate = '1MiB'\nack = true",
        &["collect", "-o", "/dev/null"],
    );
    has(&text, "output = \"/dev/null\"");
    has(&text, "ack = true");
    assert!(refused("rotate = '1MiB'", &["collect"]).starts_with("s.toml:1: rotate: "));
    let error = refused("", &["collect", "--rotate", "1MiB"]);
    assert!(error.contains("--output"), "{error}");
}

#[test]
fn printed_configuration_can_be_read_again() {
    let config = "
        listen = ['unix:///tmp/a \"b\" \\ c', 'tcp://[::1]:0']
        deny = ['10.1.2.3/8']
        unix-mode = '0660'
        workers = 1_000
        rejection-message = \"tab\\tbed\"
        output = '123'
        ack = true
    ";
    let once = in_force(config, &["collect"]);
    let again = in_force(&once, &["collect"]);
    assert_eq!(once, again);
    has(
        &once,
        "listen = [\"unix:///tmp/a \\\"b\\\" \\\\ c\", \"tcp://[::1]:0\"]",
    );
    has(&once, "workers = 1000");
    has(&once, "output = 123");
}

#[test]
fn errors_contain_their_location() {
    for (config, program, expected) in [
        (
            "rat = 5",
            "upper",
            "s.toml:1: rat: upper has no such option; did you mean rate?",
        ),
        (
            "max_per_peer = 5",
            "upper",
            "s.toml:1: max_per_peer: upper has no such option; did you mean max-per-peer?",
        ),
        (
            "\n[chat]\noutbox-byts = 1",
            "upper",
            "s.toml:3: outbox-byts: chat has no such option; did you mean outbox-bytes?",
        ),
        (
            "outbox-bytes = 1",
            "upper",
            "s.toml:1: outbox-bytes: upper has no such option, but chat has: put it into the table [chat]",
        ),
        (
            "[chta]",
            "chat",
            "s.toml:1: chta: no program is called so; did you mean chat?",
        ),
        ("[connect]", "upper", "s.toml:1: connect: is a client"),
        (
            "chat = 5",
            "chat",
            "s.toml:1: chat: what is for a program stands under [chat]",
        ),
        (
            "config = 'x'",
            "upper",
            "s.toml:1: config: --config is for the command line only",
        ),
        (
            "check-config = true",
            "upper",
            "s.toml:1: check-config: --check-config is for the command line only",
        ),
        (
            "rate = 'x'",
            "upper",
            "s.toml:1: rate: invalid value 'x': \"x\" is no rate",
        ),
        (
            "deny = ['::1',\n'10.0.0.0/8',\n'x']",
            "upper",
            "s.toml:3: deny: invalid value 'x'",
        ),
        (
            "deny = [1,\ntrue]",
            "upper",
            "s.toml:2: deny: expected NETWORK or a list of them, found boolean",
        ),
        (
            "rate = [1]",
            "upper",
            "s.toml:1: rate: expected N[:BURST], found array",
        ),
        (
            "rate.burst = 1",
            "upper",
            "s.toml:1: rate: expected N[:BURST], found table",
        ),
        (
            "workers = 0",
            "upper",
            "s.toml:1: workers: invalid value '0'",
        ),
        (
            "workers = 0x10",
            "upper",
            "s.toml:1: workers: write the number as on the command line",
        ),
        (
            "unix-mode = 0o600",
            "upper",
            "s.toml:1: unix-mode: write the number",
        ),
        (
            "idle-timeout = 5",
            "upper",
            "s.toml:1: idle-timeout: invalid value '5'",
        ),
        (
            "idle-timeout = 07:00:00",
            "upper",
            "s.toml:1: idle-timeout: expected DURATION, found datetime",
        ),
        (
            "concurrency = 'magic'",
            "upper",
            "s.toml:1: concurrency: invalid value 'magic' [possible values: sequential,",
        ),
        (
            "listen = 'nonsense'",
            "upper",
            "s.toml:1: listen: invalid value 'nonsense': write tcp://",
        ),
        ("listen = []", "upper", "s.toml:1: listen: an empty list"),
        (
            "[collect]\nack = 'yes'",
            "collect",
            "s.toml:2: ack: expected true or false, found string",
        ),
        (
            "rate = 5\nrate = 6",
            "upper",
            "s.toml:2: rate: duplicate key",
        ),
        (
            "[chat]\n[upper]\n[chat]",
            "upper",
            "s.toml:3: chat: duplicate key",
        ),
        ("rate = 5\nallow = 'x\n", "upper", "s.toml:2: "),
        // The message contains no terminal command and is a single line.
        (
            "deny = \"a\\n\\u001b[2J\"",
            "upper",
            "s.toml:1: deny: invalid value 'a '",
        ),
    ] {
        let error = refused(config, &[program]);
        assert!(error.starts_with(expected), "{config}: {error}");
        assert!(!error.contains(char::is_control), "{error}");
    }
}

#[test]
fn overridden_values_are_checked() {
    let error = refused("deny = 'x'", &["upper", "--deny", "all"]);
    assert!(
        error.starts_with("s.toml:1: deny: invalid value 'x'"),
        "{error}"
    );
}

#[test]
fn tables_of_other_programs_are_not_applied() {
    // The keys of other tables are checked, but their values are checked only when their program
    // starts.
    let text = in_force("[chat]\nrate = 'x'\n[collect]\nrotate = '1MiB'", &["upper"]);
    has(&text, "# rate is not set");
}

/// The README has a row for each effect, and each key is in exactly one row.
#[test]
fn readme_lists_the_effects_of_a_reload() {
    let readme = include_str!("../../README.md");
    let mut effects = BTreeMap::new();
    for (row, effect) in [
        ("| at once | ", Effect::AtOnce),
        (
            "| from the next connection or datagram on | ",
            Effect::NextRequest,
        ),
        ("| after a restart | ", Effect::Restart),
    ] {
        let keys = readme
            .lines()
            .find_map(|line| line.strip_prefix(row))
            .expect(row);
        for key in keys.split('`').skip(1).step_by(2) {
            assert_eq!(effects.insert(key, effect), None, "{key} is there twice");
        }
    }
    let command = built();
    for program in settings::programs(&command) {
        let own = |key: &str| {
            settings::programs(&command)
                .any(|other| settings::flags(other).all(|(name, _)| name != key))
        };
        for (key, _) in settings::flags(program) {
            // The last row describes the options of single programs without naming them.
            let expected = if own(key) { None } else { Some(effect(key)) };
            assert_eq!(
                effects.get(key).copied(),
                expected,
                "{key} in the README's table"
            );
            assert!(
                expected.is_some() || effect(key) == Effect::Restart,
                "{key}"
            );
        }
    }
    let command = built();
    for key in effects.keys() {
        let is_flag = settings::programs(&command)
            .any(|program| settings::flags(program).any(|(name, _)| name == *key));
        assert!(is_flag, "{key} is not an option");
    }
}
