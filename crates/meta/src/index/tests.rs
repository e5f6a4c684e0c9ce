use super::*;
use serde_json::json;

fn fresh() -> (tempfile::TempDir, Index) {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::open(&dir.path().join("bhatti.db")).unwrap();
    (dir, index)
}

fn row(owner: &str, name: &str) -> SandboxRow {
    SandboxRow {
        id: SandboxId::random(),
        owner: owner.parse().unwrap(),
        name: name.parse().unwrap(),
        record_json: r#"{"a":1}"#.to_owned(),
        created_at: Timestamp(1_000),
        last_active_at: Timestamp(1_000),
    }
}

fn event(owner: &str, n: u64) -> NewEvent {
    NewEvent {
        at: Timestamp(5),
        owner: owner.parse().unwrap(),
        sandbox_id: None,
        sandbox_name: Some("web".parse().unwrap()),
        kind: "created".to_owned(),
        detail: json!({ "n": n }),
    }
}

#[test]
fn sandboxes_survive_a_reopen() {
    let (dir, mut index) = fresh();
    let (a, b) = (row("admin", "a"), row("admin", "b"));
    index.put_sandbox(&a).unwrap();
    index.put_sandbox(&b).unwrap();
    assert!(index.remove_sandbox(&b.id).unwrap());
    assert!(!index.remove_sandbox(&b.id).unwrap());
    drop(index);
    let index = Index::open(&dir.path().join("bhatti.db")).unwrap();
    assert_eq!(index.all_sandboxes().unwrap(), [a]);
}

#[test]
fn a_name_is_unique_among_its_owners_sandboxes_only() {
    let (_dir, mut index) = fresh();
    let first = row("admin", "a");
    index.put_sandbox(&first).unwrap();
    let error = index.put_sandbox(&row("admin", "a")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("already"), "{error}");
    index.put_sandbox(&row("other", "a")).unwrap();
    let changed = SandboxRow { name: "c".parse().unwrap(), ..first };
    index.put_sandbox(&changed).unwrap();
    assert_eq!(index.all_sandboxes().unwrap().len(), 2);
}

#[test]
fn touching_never_takes_time_back() {
    let (_dir, mut index) = fresh();
    let (a, b) = (row("admin", "a"), row("admin", "b"));
    index.replace_all(&[a.clone(), b.clone()]).unwrap();
    let seen = [
        (a.id.clone(), Timestamp(2_000)),
        (b.id.clone(), Timestamp(500)),
        (SandboxId::random(), Timestamp(9_000)),
    ];
    index.touch(&seen).unwrap();
    let times: Vec<(String, i64)> = index
        .all_sandboxes()
        .unwrap()
        .into_iter()
        .map(|row| (row.name.to_string(), row.last_active_at.0))
        .collect();
    assert_eq!(times.len(), 2);
    assert!(times.contains(&("a".to_owned(), 2_000)) && times.contains(&("b".to_owned(), 1_000)));
}

#[test]
fn a_rebuild_that_fails_leaves_the_old_rows() {
    let (_dir, mut index) = fresh();
    let old = row("admin", "old");
    index.put_sandbox(&old).unwrap();
    let error = index.replace_all(&[row("admin", "x"), row("admin", "x")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(index.all_sandboxes().unwrap(), [old]);
}

#[test]
fn events_from_a_time_on_are_found_by_number() {
    let (_dir, mut index) = fresh();
    assert_eq!(index.last_event_before(Timestamp(0)).unwrap(), 0);
    // The clock is set back once.
    for at in [10, 20, 15, 30] {
        index.append_event(&NewEvent { at: Timestamp(at), ..event("admin", 1) }).unwrap();
    }
    for (at, before) in [(0, 0), (10, 0), (11, 1), (20, 1), (21, 3), (30, 3), (31, 4)] {
        assert_eq!(index.last_event_before(Timestamp(at)).unwrap(), before, "{at}");
    }
}

#[test]
fn events_are_numbered_filtered_and_bounded() {
    let (dir, mut index) = fresh();
    index.events_kept = 10;
    for n in 1..=25 {
        let owner = if n % 2 == 0 { "admin" } else { "other" };
        assert_eq!(index.append_event(&event(owner, n)).unwrap().seq, n);
    }
    let seqs = |events: Vec<Event>| events.iter().map(|e| e.seq).collect::<Vec<_>>();
    let all = index.events_since(0, 100, None).unwrap();
    assert_eq!(all[0].event, event("admin", 16));
    assert_eq!(seqs(all), (16..=25).collect::<Vec<_>>());
    assert_eq!(seqs(index.events_since(20, 2, Some(&Owner::admin())).unwrap()), [22, 24]);
    assert!(index.events_since(25, 100, None).unwrap().is_empty());
    assert!(index.events_since(u64::MAX, 100, None).unwrap().is_empty());
    drop(index);
    let mut index = Index::open(&dir.path().join("bhatti.db")).unwrap();
    index.events_kept = 0;
    assert_eq!(index.append_event(&event("admin", 1)).unwrap().seq, 26);
    assert_eq!(index.append_event(&event("admin", 1)).unwrap().seq, 27, "numbers are not used again");
}

#[test]
fn settings_are_replaced_by_key() {
    let (_dir, mut index) = fresh();
    assert_eq!(index.get_setting("k").unwrap(), None);
    index.set_setting("k", "1").unwrap();
    index.set_setting("k", "2").unwrap();
    assert_eq!(index.get_setting("k").unwrap().as_deref(), Some("2"));
}

#[test]
fn a_newer_schema_is_refused_by_name_and_left_alone() {
    let (dir, index) = fresh();
    let path = dir.path().join("bhatti.db");
    index.connection.execute_batch("PRAGMA user_version = 7").unwrap();
    drop(index);
    let before = std::fs::read(&path).unwrap();
    let error = Index::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NewerSchema);
    assert!(error.to_string().contains("newer bhatti"), "{error}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("version 7"));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_file_is_named_and_can_be_set_aside() {
    let (dir, mut index) = fresh();
    let path = dir.path().join("bhatti.db");
    for n in 0..500 {
        index.put_sandbox(&row("admin", &format!("s{n}"))).unwrap();
    }
    drop(index);
    let good = std::fs::read(&path).unwrap();
    let mut page_gone = good.clone();
    page_gone[8192..12288].fill(0x55);
    for bad in [
        b"no database at all, but long enough to be taken for one".repeat(40),
        page_gone,
        good[..8192].to_vec(),
    ] {
        std::fs::write(&path, &bad).unwrap();
        let error = Index::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
    let aside = Index::set_aside(&path).unwrap();
    assert!(aside.exists() && !path.exists());
    assert!(Index::open(&path).unwrap().all_sandboxes().unwrap().is_empty());
}

#[test]
fn a_directory_in_its_place_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Index::open(dir.path()).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_value_that_no_type_accepts_is_damage() {
    let (_dir, mut index) = fresh();
    index.put_sandbox(&row("admin", "a")).unwrap();
    index.connection.execute_batch("UPDATE sandboxes SET id = '../../etc'").unwrap();
    assert_eq!(index.all_sandboxes().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_is_published_survives_a_reopen_and_a_rebuild_and_goes_with_its_sandbox() {
    let (dir, mut index) = fresh();
    let (a, b) = (row("admin", "a"), row("admin", "b"));
    let publication = |alias: &str, sandbox: &SandboxRow| PublicationRow {
        alias: alias.parse().unwrap(),
        owner: sandbox.owner.clone(),
        sandbox_id: sandbox.id.clone(),
        port: 8080,
        created_at: Timestamp(7),
    };
    index.replace_all(&[a.clone(), b.clone()]).unwrap();
    index.put_publication(&publication("one", &a)).unwrap();
    index.put_publication(&publication("two", &b)).unwrap();
    assert_eq!(index.put_publication(&publication("one", &b)).unwrap_err().kind(), ErrorKind::Conflict);
    index.replace_all(&[a.clone(), b.clone()]).unwrap();
    drop(index);
    let mut index = Index::open(&dir.path().join("bhatti.db")).unwrap();
    assert_eq!(index.all_publications().unwrap(), [publication("one", &a), publication("two", &b)]);
    index.remove_sandbox(&a.id).unwrap();
    assert_eq!(index.all_publications().unwrap(), [publication("two", &b)]);
    assert!(index.remove_publication(&"two".parse().unwrap()).unwrap());
    assert!(!index.remove_publication(&"two".parse().unwrap()).unwrap());
}
