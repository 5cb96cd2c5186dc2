//! Completion of the command line, and manual pages: both are generated from its definition.
//!
//! kubectl completes a plugin by the program `kubectl_complete-<plugin>` in the PATH: it is called with the words after the plugin's name,
//! the last one being incomplete, and prints candidates as cobra does (`candidate<TAB>description`), then `:<directive>`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Arg, ArgAction, Args, Command, ValueEnum};
use clap_complete::Shell;

/// What kubectl runs for completions.
const KUBECTL_SCRIPT: &str = "#!/bin/sh\n# Completions of `kubectl mig`: put this into a directory of the PATH as kubectl_complete-mig, \
                              executable.\nexec kubectl-mig completion kubectl -- \"$@\"\n";

/// cobra's directive: complete file names where there is no candidate.
const FILES: u8 = 0;
/// cobra's directive: no file names.
const NO_FILES: u8 = 4;

/// For whom the script is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names are the shells")]
pub enum CompletionOf {
    Bash,
    Zsh,
    Fish,
    Powershell,
    Kubectl,
}

/// Arguments of `completion`.
#[derive(Debug, Clone, Args)]
pub struct CompletionArgs {
    /// The shell, or `kubectl`.
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: CompletionOf,
    /// With `kubectl`, prints candidates for these words instead of the script; the last one is incomplete.
    #[arg(last = true, hide = true)]
    pub words: Option<Vec<String>>,
}

/// Arguments of `man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Write kubectl-mig.1 and one page for each subcommand into this directory, which is created where it does not exist.
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// Prints a completion script of a command, or candidates. Answers the exit status.
#[must_use]
pub fn run(args: &CompletionArgs, mut command: Command) -> u8 {
    let shell = match args.shell {
        CompletionOf::Bash => Shell::Bash,
        CompletionOf::Zsh => Shell::Zsh,
        CompletionOf::Fish => Shell::Fish,
        CompletionOf::Powershell => Shell::PowerShell,
        CompletionOf::Kubectl => {
            return match &args.words {
                Some(words) => print(candidates(command, words).as_bytes()),
                None => print(KUBECTL_SCRIPT.as_bytes()),
            };
        }
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "kubectl-mig", &mut script);
    // The subcommands have the name with a space, `kubectl mig`, which the script for bash does not recognize.
    print(String::from_utf8_lossy(&script).replace("kubectl__subcmd__mig", "kubectl__mig").as_bytes())
}

/// Prints the manual page of a command, or writes all of them. Answers the exit status.
#[must_use]
pub fn man(args: &ManArgs, command: Command) -> u8 {
    let written = match &args.directory {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).map(|()| page)
        }
        Some(directory) => {
            // `kubectl mig` has a space, and pages of one name have none.
            let command = command.bin_name("kubectl-mig");
            let written = std::fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(command, directory));
            written.map(|()| Vec::new())
        }
    };
    match written {
        Ok(page) => print(&page),
        Err(error) => {
            let place =
                args.directory.as_ref().map(|it| format!(" to `{}`", it.display())).unwrap_or_default();
            // A closed standard error cannot be reported.
            let _ = writeln!(io::stderr().lock(), "kubectl mig man: cannot write{place}: {error}");
            2
        }
    }
}

fn print(text: &[u8]) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr().lock(), "kubectl mig: cannot write to standard output: {error}");
            2
        }
        _ => 0,
    }
}

/// What kubectl reads: the candidates for the last of the words, and a directive.
fn candidates(mut root: Command, words: &[String]) -> String {
    root.build();
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut command = &root;
    let mut open: Option<&Arg> = None;
    let mut positionals = 0;
    for word in before {
        match open.take() {
            Some(_) => {}
            None if word.starts_with('-') => {
                open = flag(command, word).filter(|it| takes_value(it) && !word.contains('='))
            }
            None => match command.find_subcommand(word) {
                Some(subcommand) => command = subcommand,
                None => positionals += 1,
            },
        }
    }
    let (mut found, directive) = match open {
        Some(argument) => values(argument),
        None if last.starts_with('-') => (flags(command), NO_FILES),
        None if command.has_subcommands() => (subcommands(command), NO_FILES),
        None => command.get_positionals().nth(positionals).map_or((Vec::new(), NO_FILES), values),
    };
    found.retain(|(it, _)| it.starts_with(last));
    let lines = found.into_iter().map(|(name, help)| match help {
        Some(help) => format!("{name}\t{help}\n"),
        None => format!("{name}\n"),
    });
    lines.chain([format!(":{directive}\n")]).collect()
}

/// A candidate and the first line of its help.
type Candidate = (String, Option<String>);

fn first_sentence(text: &impl ToString) -> Option<String> {
    let text = text.to_string();
    Some(text.lines().next()?.split(". ").next()?.trim_end_matches('.').to_owned())
}

fn subcommands(command: &Command) -> Vec<Candidate> {
    let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
    shown.map(|it| (it.get_name().to_owned(), it.get_about().and_then(first_sentence))).collect()
}

fn flags(command: &Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|it| !it.is_hide_set());
    let named = shown
        .filter_map(|it| Some((format!("--{}", it.get_long()?), it.get_help().and_then(first_sentence))));
    named.collect()
}

fn flag<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    let mut arguments = command.get_arguments();
    match word.strip_prefix("--") {
        Some(long) => {
            let long = long.split('=').next();
            arguments.find(|it| it.get_long() == long)
        }
        None => arguments.find(|it| it.get_short() == word.chars().nth(1) && word.chars().count() == 2),
    }
}

fn takes_value(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
}

/// The values of an argument, and whether a file can be one.
fn values(argument: &Arg) -> (Vec<Candidate>, u8) {
    let possible = argument.get_possible_values();
    if possible.is_empty() {
        let names = argument.get_value_names().unwrap_or_default();
        let is_file = names.iter().any(|it| ["FILE", "DIR"].contains(&it.as_str()));
        return (Vec::new(), if is_file { FILES } else { NO_FILES });
    }
    let shown = possible.iter().filter(|it| !it.is_hide_set());
    let named = shown.map(|it| (it.get_name().to_owned(), it.get_help().and_then(first_sentence)));
    (named.collect(), NO_FILES)
}
