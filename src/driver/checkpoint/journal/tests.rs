use super::*;
use crate::checkpoint::fixture::taken;
use crate::checkpoint::{Checkpoint, Stage, fixture};

#[test]
fn only_one_at_a_time_has_the_journal_of_a_claim() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let first = taken(&checkpoint, "uid-1");
    let uid = "uid-1".parse().unwrap();
    assert!(matches!(checkpoint.take(&uid, true).unwrap(), Taken::Busy));
    drop(first);
    assert!(matches!(checkpoint.take(&uid, false).unwrap(), Taken::Nothing), "nothing was intended");
}

#[test]
fn the_last_line_counts_and_what_an_interrupted_write_left_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let mut journal = taken(&checkpoint, "uid-1");
    let intended = fixture::record("uid-1");
    fixture::begun(&checkpoint, &mut journal, &intended);
    let prepared = Record { stage: Stage::Prepared, ..intended };
    journal.append(&prepared).unwrap();
    drop(journal);
    let path = directory.path().join("uid-1.jsonl");
    for tail in ["{\"version\":1,\"bo", "\0\0\0\0"] {
        let mut bytes = fs::read(&path).unwrap();
        let whole = bytes.clone();
        bytes.extend_from_slice(tail.as_bytes());
        fs::write(&path, bytes).unwrap();
        let mut journal = taken(&checkpoint, "uid-1");
        assert_eq!(*journal.stored(), Stored::Record(Arc::new(prepared.clone())), "{tail:?}");
        journal.append(&prepared).unwrap();
        drop(journal);
        let (stored, _) = parse(&fs::read(&path).unwrap(), &"uid-1".parse().unwrap());
        assert_eq!(stored, Stored::Record(Arc::new(prepared.clone())), "{tail:?}");
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn older_lines_do_not_speak_for_a_last_one_that_cannot_be_understood() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let intended = line_of(&fixture::record("uid-1")).unwrap();
    for newer in ["{\"version\":2,\"stage\":\"prepared\"}\n", "bit rot\n", "bit rot\n{\"version\":1"] {
        let bytes = [&intended, newer.as_bytes()].concat();
        fs::write(directory.path().join("uid-1.jsonl"), bytes).unwrap();
        assert!(matches!(taken(&checkpoint, "uid-1").stored(), Stored::Unreadable(_)), "{newer:?}");
    }
}

#[test]
fn a_directory_that_was_removed_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let claims = directory.path().join("claims");
    let checkpoint = Checkpoint::open(&claims).unwrap();
    fs::remove_dir(&claims).unwrap();
    assert!(matches!(checkpoint.take(&"uid-1".parse().unwrap(), false).unwrap(), Taken::Nothing));
    drop(taken(&checkpoint, "uid-1"));
    assert!(claims.exists());
}

#[test]
fn every_beginning_of_an_intent_says_that_nothing_was_done() {
    let uid: ClaimUid = "uid-1".parse().unwrap();
    let line = line_of(&fixture::record("uid-1")).unwrap();
    for length in 0..line.len() {
        assert_eq!(parse(&line[..length], &uid), (Stored::Nothing, 0), "{length} bytes");
    }
    assert!(matches!(parse(&line, &uid), (Stored::Record(_), length) if length == line.len() as u64));
}

#[test]
fn rubbish_is_unreadable_and_is_kept_aside_when_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let path = directory.path().join("uid-2.jsonl");
    for rubbish in ["rubbish", "rubbish\n", "{\"version\":1}\n", "\0"] {
        fs::write(&path, rubbish).unwrap();
        let mut journal = taken(&checkpoint, "uid-2");
        assert!(matches!(journal.stored(), Stored::Unreadable(_)), "{rubbish:?}");
        assert_eq!(checkpoint.records().unwrap(), []);
        fixture::begun(&checkpoint, &mut journal, &fixture::record("uid-2"));
        assert_eq!(fs::read_to_string(journal.keep_aside().unwrap().unwrap()).unwrap(), rubbish);
        drop(journal);
        let journal = taken(&checkpoint, "uid-2");
        assert_eq!(*journal.stored(), Stored::Record(Arc::new(fixture::record("uid-2"))));
    }
}

/// What may have the name of a claim's file without being one.
fn made(what: &str, path: &Path, target: &Path) {
    match what {
        "symbolic link" => std::os::unix::fs::symlink(target, path).unwrap(),
        "directory" => fs::create_dir(path).unwrap(),
        "pipe" => {
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_no_file_is_neither_followed_nor_waited_for_and_is_set_aside() {
    for what in ["symbolic link", "directory", "pipe"] {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(&directory.path().join("claims")).unwrap();
        let [path, target] = ["claims/uid-3.jsonl", "elsewhere"].map(|it| directory.path().join(it));
        // The record of the very claim, so that only the kind of the file speaks against it.
        let content = line_of(&fixture::record("uid-3")).unwrap();
        fs::write(&target, &content).unwrap();
        made(what, &path, &target);
        let is_unreadable =
            |stored: &Stored| matches!(stored, Stored::Unreadable(reason) if reason.contains(what));
        assert!(is_unreadable(&checkpoint.list().unwrap()[0].1), "{what}");

        let mut journal = taken(&checkpoint, "uid-3");
        assert!(is_unreadable(journal.stored()), "{what}: {:?}", journal.stored());
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{what}");
        let aside = fs::symlink_metadata(path.with_extension("unreadable")).unwrap();
        assert!(!aside.is_file(), "{what}");
        // Also for the next process, until there is a record.
        drop(journal);
        journal = taken(&checkpoint, "uid-3");
        assert!(is_unreadable(journal.stored()), "{what}: {:?}", journal.stored());
        let record = Record { stage: Stage::Prepared, ..fixture::record("uid-3") };
        fixture::begun(&checkpoint, &mut journal, &record);
        drop(journal);
        assert_eq!(*taken(&checkpoint, "uid-3").stored(), Stored::Record(Arc::new(record)), "{what}");
        let aside = fs::symlink_metadata(path.with_extension("unreadable")).unwrap();
        assert!(!aside.is_file(), "{what}: it is still there");
        assert_eq!(fs::read(&target).unwrap(), content, "{what}");
    }
}

#[test]
fn an_unfinished_file_that_is_a_link_is_not_written_through() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&directory.path().join("claims")).unwrap();
    let target = directory.path().join("elsewhere");
    fs::write(&target, "others").unwrap();
    fs::write(directory.path().join("claims/uid-3.jsonl"), "rubbish\n").unwrap();
    std::os::unix::fs::symlink(&target, directory.path().join("claims/uid-3.tmp")).unwrap();
    let mut journal = taken(&checkpoint, "uid-3");
    fixture::begun(&checkpoint, &mut journal, &fixture::record("uid-3"));
    assert_eq!(fs::read_to_string(target).unwrap(), "others");
}

#[test]
fn what_cannot_be_forced_to_the_disk_was_not_intended() {
    let directory = tempfile::tempdir().unwrap();
    let claims = directory.path().join("claims");
    let checkpoint = Checkpoint::open(&claims).unwrap();
    let mut journal = taken(&checkpoint, "uid-1");
    let begun =
        journal.begin(&fixture::record("uid-1"), &checkpoint.try_reserve().unwrap().unwrap()).unwrap();
    assert_eq!(checkpoint.records().unwrap().len(), 1, "others see it at once");
    // The directory cannot be forced to the disk any more under its name.
    fs::rename(&claims, directory.path().join("away")).unwrap();
    journal.force(begun).unwrap_err();
    assert_eq!(*journal.stored(), Stored::Nothing);
    assert_eq!(fs::metadata(directory.path().join("away/uid-1.jsonl")).unwrap().len(), 0);
}

#[test]
fn an_unreadable_file_is_not_forgotten_by_looking_at_it() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let path = directory.path().join("uid-2.jsonl");
    fs::write(&path, "rubbish").unwrap();
    drop(taken(&checkpoint, "uid-2"));
    assert!(path.exists());
}

#[test]
fn an_unreadable_file_of_a_claim_that_is_forgotten_is_kept_aside_where_that_is_possible() {
    for is_possible in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let path = directory.path().join("uid-2.jsonl");
        let aside = path.with_extension("unreadable");
        fs::write(&path, "rubbish").unwrap();
        if !is_possible {
            // Neither a link nor a file can get this name.
            fs::create_dir(&aside).unwrap();
        }
        let kept = taken(&checkpoint, "uid-2").forget_unread().unwrap();
        assert_eq!(kept, is_possible.then(|| aside.clone()));
        assert!(!path.exists(), "{is_possible}");
        match is_possible {
            true => assert_eq!(fs::read_to_string(aside).unwrap(), "rubbish"),
            false => assert!(aside.is_dir()),
        }
    }
}

#[test]
fn a_file_does_not_grow_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let mut journal = taken(&checkpoint, "uid-1");
    let record = fixture::record("uid-1");
    fixture::begun(&checkpoint, &mut journal, &record);
    for _ in 0..MOST_BYTES / 64 {
        journal.append(&record).unwrap();
    }
    let path = directory.path().join("uid-1.jsonl");
    assert!(fs::metadata(&path).unwrap().len() < MOST_BYTES / 2);
    assert!(matches!(checkpoint.take(&"uid-1".parse().unwrap(), true).unwrap(), Taken::Busy));
    journal.forget().unwrap();
    assert!(!path.exists());
}
