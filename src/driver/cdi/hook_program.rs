//! Which subcommands a host's hook program has: read from the program's file.
//!
//! The program is not started. This driver's container has no shell and not the host's loader, so that it could run
//! neither the wrapper script that the GPU Operator installs up to toolkit 1.19 nor a program that was built for a newer
//! glibc. `nvidia-cdi-hook` is a Go program: the names of its subcommands are texts in its file, and it has no such text
//! for a subcommand that it lacks. That holds for the source of 1.16.0 to 1.20.0.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::cdi::libraries::{join, parent};
use crate::cdi::root::Root;
use crate::files::read_bounded;

/// The largest program that is read to its end; `nvidia-cdi-hook` has some 10 MiB.
const MAX_PROGRAM: u64 = 256 * 1024 * 1024;
/// The largest script that is read.
const MAX_SCRIPT: u64 = 64 * 1024;
/// How many scripts may stand before the program.
const MAX_SCRIPTS: usize = 3;
/// How many programs a script may name; more are not read.
const MAX_TARGETS: usize = 8;
const CHUNK: usize = 256 * 1024;

/// What the file of a hook program says.
#[derive(Debug)]
pub(super) struct HookProgram {
    /// Those of the names asked for that it has, or why they are not known.
    pub(super) names: Result<BTreeSet<String>, HookProgramError>,
    /// The paths below the host's root that were read: a change of these files may change the answer.
    pub(super) watched: Vec<String>,
}

/// Why the subcommands of a program are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookProgramError {
    /// It is not there, or is not executable.
    #[error("not found on the host")]
    NotFound,
    /// It can't be read.
    #[error("can't be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is a script, and what it runs is not known.
    #[error("is a script, and no program that it runs was found")]
    Script,
}

impl HookProgram {
    /// Looks for these names in the program at this path of the host, or in the program that it runs if it is a script.
    pub(super) fn read(host: &Root, program: &str, names: &[&str]) -> Self {
        let mut search = Search { host, names, found: BTreeSet::new(), has_program: false, seen: Vec::new() };
        let names = match search.look_into(program, MAX_SCRIPTS) {
            Ok(true) if search.has_program || !search.found.is_empty() => Ok(search.found),
            Ok(true) => Err(HookProgramError::Script),
            Ok(false) => Err(HookProgramError::NotFound),
            Err(error) => Err(error.into()),
        };
        Self { names, watched: search.seen }
    }
}

/// A search under way.
struct Search<'a> {
    host: &'a Root,
    names: &'a [&'a str],
    found: BTreeSet<String>,
    /// Whether anything but scripts was found.
    has_program: bool,
    seen: Vec<String>,
}

impl Search<'_> {
    /// Adds what one file says, and what those say that it runs. False where there is no such program.
    fn look_into(&mut self, program: &str, scripts: usize) -> io::Result<bool> {
        if self.seen.iter().any(|it| it == program) {
            return Ok(true);
        }
        self.seen.push(program.to_owned());
        let Some(path) = self.host.find_program(program) else { return Ok(false) };
        let here = self.host.here(&path);
        self.found.extend(names_in(&here, self.names)?);
        if !is_script(&here)? {
            self.has_program = true;
        } else if 0 < scripts {
            let text = read_bounded(&here, MAX_SCRIPT)?;
            for target in targets(&path, &String::from_utf8_lossy(&text)) {
                self.look_into(&target, scripts - 1)?;
            }
        }
        Ok(true)
    }
}

fn is_script(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(2).read_to_end(&mut start)?;
    Ok(start == b"#!")
}

/// The programs that a wrapper script may run: its neighbour `<name>.real`, as the GPU Operator's toolkit calls it, and
/// the absolute paths in it whose last part says that they are the hook program.
fn targets(script: &str, text: &str) -> Vec<String> {
    const NAME: &str = "nvidia-cdi-hook";
    let words = text.split(|it: char| it.is_whitespace() || "\"'`;|&()=".contains(it));
    let named = words.filter(|it| it.starts_with('/') && it[parent(it).len()..].contains(NAME));
    let real =
        join(parent(script), &format!("{}.real", script[parent(script).len()..].trim_start_matches('/')));
    [real].into_iter().chain(named.map(str::to_owned)).take(MAX_TARGETS).collect()
}

/// Those of the names that a file contains.
fn names_in(path: &Path, names: &[&str]) -> io::Result<BTreeSet<String>> {
    if names.is_empty() {
        return Ok(BTreeSet::new());
    }
    let overlap = names.iter().map(|it| it.len()).max().unwrap_or_default().saturating_sub(1);
    let mut file = File::open(path)?.take(MAX_PROGRAM);
    let mut found = BTreeSet::new();
    let mut buffer = Vec::with_capacity(overlap + CHUNK);
    while file.by_ref().take(CHUNK as u64).read_to_end(&mut buffer)? != 0 {
        for name in names.iter().filter(|it| !it.is_empty()) {
            if !found.contains(*name) && buffer.windows(name.len()).any(|it| it == name.as_bytes()) {
                found.insert((*name).to_owned());
            }
        }
        // A name may begin in one piece and end in the next.
        buffer.drain(..buffer.len().saturating_sub(overlap));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdi::fixture::Fixture;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const PROGRAM: &str = "/usr/bin/nvidia-cdi-hook";
    const NAMES: [&str; 3] = ["create-symlinks", "update-ldcache", "disable-device-node-modification"];

    fn read(fixture: &Fixture, program: &str) -> HookProgram {
        HookProgram::read(&fixture.root().hooks.host(), program, &NAMES)
    }

    fn names(fixture: &Fixture, program: &str) -> Vec<String> {
        read(fixture, program).names.unwrap().into_iter().collect()
    }

    #[test]
    fn only_names_that_the_file_contains_are_subcommands() {
        let fixture = Fixture::on_host();
        fixture.host_program_with(PROGRAM, b"\x7fELF\x02...update-ldcachecreate-symlinkschmod...");
        assert_eq!(names(&fixture, PROGRAM), ["create-symlinks", "update-ldcache"]);
        fixture.host_program_with(PROGRAM, b"\x7fELF\x02another program");
        assert_eq!(names(&fixture, PROGRAM), [""; 0]);
    }

    #[test]
    fn a_name_that_lies_across_two_pieces_is_found() {
        let fixture = Fixture::on_host();
        for before in [CHUNK - 1, CHUNK - 7, CHUNK - "update-ldcache".len() + 1, 2 * CHUNK - 3] {
            let mut bytes = vec![b'.'; before];
            bytes.extend_from_slice(b"update-ldcache and more");
            fixture.host_program_with(PROGRAM, &bytes);
            assert_eq!(names(&fixture, PROGRAM), ["update-ldcache"], "{before}");
        }
    }

    #[test]
    fn a_wrapper_has_the_subcommands_of_the_program_that_it_runs() {
        // Toolkit 1.17 to 1.19: cmd/nvidia-ctk-installer/toolkit/installer/executables.go.
        const TOOLKIT: &str = "/usr/local/nvidia/toolkit";
        let fixture = Fixture::on_host();
        let wrapper = format!("{TOOLKIT}/nvidia-cdi-hook");
        let text = format!("#! /bin/sh\nPATH={TOOLKIT}:$PATH \\\n\t{wrapper}.real \\\n\t\t\"$@\"\n");
        fixture.host_program_with(&wrapper, text.as_bytes());
        let before = read(&fixture, &wrapper);
        assert!(matches!(before.names, Err(HookProgramError::Script)));
        assert!(before.watched.contains(&format!("{wrapper}.real")), "its coming is noticed");
        fixture.host_program_with(&format!("{wrapper}.real"), b"\x7fELF update-ldcache");
        assert_eq!(names(&fixture, &wrapper), ["update-ldcache"]);

        // Any other place, by its path in the script.
        fixture.host_program_with("/opt/x/nvidia-cdi-hook-1.17", b"create-symlinks");
        fixture.host_program_with(PROGRAM, b"#!/bin/sh\nexec \"/opt/x/nvidia-cdi-hook-1.17\" \"$@\"\n");
        assert_eq!(names(&fixture, PROGRAM), ["create-symlinks"]);
    }

    #[test]
    fn scripts_that_run_each_other_end() {
        let fixture = Fixture::on_host();
        fixture.host_program_with(PROGRAM, b"#!/bin/sh\n/opt/nvidia-cdi-hook $@\n");
        fixture.host_program_with("/opt/nvidia-cdi-hook", b"#!/bin/sh\n/usr/bin/nvidia-cdi-hook $@\n");
        assert!(matches!(read(&fixture, PROGRAM).names, Err(HookProgramError::Script)));
    }

    #[test]
    fn a_program_that_is_absent_or_not_executable_is_not_found() {
        let fixture = Fixture::on_host();
        assert!(matches!(read(&fixture, "/usr/bin/absent").names, Err(HookProgramError::NotFound)));
        fs::set_permissions(fixture.path(PROGRAM), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read(&fixture, PROGRAM).names, Err(HookProgramError::NotFound)));
    }

    /// Compares with the real programs, where there are any: `NVIDIA_CDI_HOOKS` lists their paths, separated by colons.
    #[test]
    fn the_names_found_are_those_that_the_real_programs_answer_to() {
        let Ok(programs) = std::env::var("NVIDIA_CDI_HOOKS") else {
            eprintln!("skipped: NVIDIA_CDI_HOOKS names no programs");
            return;
        };
        let all = ["create-symlinks", "enable-cuda-compat", "update-ldcache", NAMES[2]];
        for program in programs.split(':') {
            let found = HookProgram::read(&Root::same("/"), program, &all).names.unwrap();
            let help = std::process::Command::new(program).arg("--help").output().unwrap();
            let help = String::from_utf8(help.stdout).unwrap();
            for name in all {
                let is_listed = help.lines().any(|it| it.split_whitespace().next() == Some(name));
                assert_eq!(found.contains(name), is_listed, "{name} of {program}: {help}");
            }
        }
    }
}
