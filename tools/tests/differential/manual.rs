//! Completions and manual pages are there for every command that `--help` lists.

use crate::tool::{Pair, Tool};

fn commands(pair: &Pair) -> Vec<String> {
    let said = Tool::Ours.img(pair.ours(), "--help").expect_success();
    let lines = said.stdout.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let name = line.split_whitespace().next()?;
        // A description that goes on in the next line is indented further.
        line.strip_prefix("  ")?.starts_with(name).then(|| name.to_owned())
    });
    names.filter(|name| name.chars().all(|c| c.is_ascii_lowercase())).collect()
}

#[test]
fn every_command_has_a_page_and_is_completed() {
    let pair = Pair::new();
    Tool::Ours.run("qcow", pair.ours(), ["man", "."]).expect_success();
    let script = Tool::Ours.run("qcow", pair.ours(), ["completions", "bash"]).expect_success();
    let commands = commands(&pair);
    assert!(commands.len() > 8, "{commands:?}");
    for command in commands {
        let page = std::fs::read_to_string(pair.ours().join(format!("qcow-{command}.1")));
        assert!(page.expect("a manual page").contains(".SH NAME"), "{command}");
        assert!(script.stdout.contains(&format!("qcow,{command})")), "{command}");
    }
    let said = Tool::Ours.run("qcow", pair.ours(), ["man", "nowhere"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("'nowhere': No such file or directory"), "{said:?}");
}
