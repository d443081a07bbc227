//! A folder of files as a source: `.json` files hold one row each, `.jsonl` files one row a line.
//!
//! ```text
//!  notification ──▶ paths to read ──▶ read, compare with what was delivered ──▶ messages
//!        rescan ──▶
//! ```
//!
//! Notifications make it quick, a rescan from time to time makes it right: it finds what no
//! notification told. A key is delivered only when its bytes differ from those last delivered, so
//! touching a file changes nothing. Files and folders whose names begin with a dot are left alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use xxhash_rust::xxh3::xxh3_64;

use crate::message::{Message, Offset, Polled, Reached, Source, SourceError};

/// How long a change may stay unseen if its notification was lost.
const RESCAN_INTERVAL: Duration = Duration::from_secs(15);

/// How many files one turn reads at most, so that epochs can close in between.
const FILES_A_TURN: usize = 512;

/// One worker's share of a folder.
pub struct FilesSource {
    folder: PathBuf,
    share: Share,
    files: HashMap<Arc<str>, FileState>,
    to_read: VecDeque<Arc<str>>,
    queued: HashSet<Arc<str>>,
    events: Receiver<notify::Result<notify::Event>>,
    _watcher: RecommendedWatcher,
    next_scan: Instant,
    /// Files that are there but could not be read: what they hold is unknown, not gone.
    unreadable: HashSet<Arc<str>>,
}

/// Which files a worker reads: those whose path is placed on it.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// The worker's index.
    pub worker: usize,
    /// How many workers share the source.
    pub workers: usize,
}

impl Share {
    /// Everything, for the only reader.
    pub const ALL: Self = Self {
        worker: 0,
        workers: 1,
    };

    /// Nothing, for whoever only wants to look whether the source is there.
    pub const NOTHING: Self = Self {
        worker: usize::MAX,
        workers: usize::MAX,
    };

    fn holds(self, path: &str) -> bool {
        xxh3_64(path.as_bytes()) % self.workers as u64 == self.worker as u64
    }
}

/// What was last delivered of a file.
struct FileState {
    version: Version,
    /// A digest of each row, 0 for a line without one.
    rows: Vec<u64>,
}

/// Tells whether a file may have changed without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Version {
    modified: Option<SystemTime>,
    length: u64,
}

impl From<&Metadata> for Version {
    fn from(metadata: &Metadata) -> Self {
        Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
        }
    }
}

impl FilesSource {
    /// Opens this worker's share of the folder.
    ///
    /// # Errors
    /// If the folder does not exist, cannot be read or cannot be watched.
    pub fn open(folder: &Path, share: Share) -> Result<Self, SourceError> {
        // Notifications name absolute paths; keys are what follows this very one.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        fs::read_dir(&folder).map_err(|error| {
            SourceError::Fatal(format!(
                "cannot read the folder \"{}\": {error}",
                folder.display()
            ))
        })?;
        let (sender, events) = mpsc::channel();
        let mut watcher =
            notify::recommended_watcher(sender).map_err(|e| unwatched(&folder, &e))?;
        watcher
            .watch(&folder, RecursiveMode::Recursive)
            .map_err(|e| unwatched(&folder, &e))?;
        Ok(Self {
            folder,
            share,
            files: HashMap::new(),
            to_read: VecDeque::new(),
            queued: HashSet::new(),
            events,
            _watcher: watcher,
            next_scan: Instant::now(),
            unreadable: HashSet::new(),
        })
    }

    /// Compares the folder with what was delivered, and queues what differs.
    fn scan(&mut self) -> Result<(), SourceError> {
        let mut present = HashSet::with_capacity(self.files.len());
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).map_err(|error| {
                // Without this the files of an unreadable folder would look deleted.
                SourceError::Retry(format!(
                    "cannot read the folder \"{}\": {error}",
                    folder.display()
                ))
            })?;
            for entry in entries {
                let entry = entry.map_err(|error| SourceError::Retry(error.to_string()))?;
                let path = entry.path();
                if hidden(&path) {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                    continue;
                }
                let Some(key) = self.own_key(&path) else {
                    continue;
                };
                let version = fs::metadata(&path)
                    .ok()
                    .map(|metadata| Version::from(&metadata));
                if self.files.get(&key).map(|state| state.version) != version {
                    self.enqueue(Arc::clone(&key));
                }
                present.insert(key);
            }
        }
        let gone: Vec<_> = self
            .files
            .keys()
            .filter(|key| !present.contains(*key))
            .cloned()
            .collect();
        gone.into_iter().for_each(|key| self.enqueue(key));
        self.next_scan = Instant::now() + RESCAN_INTERVAL;
        Ok(())
    }

    /// The key of a file that holds rows and belongs to this worker.
    fn own_key(&self, path: &Path) -> Option<Arc<str>> {
        let kind = path.extension()?.to_str()?;
        if !matches!(kind, "json" | "jsonl" | "ndjson") {
            return None;
        }
        let inside = path.strip_prefix(&self.folder).ok()?;
        if inside.ancestors().any(hidden) {
            return None;
        }
        let key = inside.to_string_lossy();
        self.share.holds(&key).then(|| key.as_ref().into())
    }

    fn enqueue(&mut self, key: Arc<str>) {
        if self.queued.insert(Arc::clone(&key)) {
            self.to_read.push_back(key);
        }
    }

    /// Queues the files that notifications name, after waiting for the first.
    fn watch(&mut self, wait: Duration) {
        let mut event = self.events.recv_timeout(wait);
        loop {
            match event {
                Ok(Ok(event)) => self.notice(&event),
                // Lost notifications, or too many at once: only a scan tells.
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => self.next_scan = Instant::now(),
                Err(RecvTimeoutError::Timeout) => return,
            }
            event = self.events.recv_timeout(Duration::ZERO);
            if let Err(RecvTimeoutError::Disconnected) = event {
                return;
            }
        }
    }

    fn notice(&mut self, event: &notify::Event) {
        if event.kind.is_access() {
            return;
        }
        if event.need_rescan() {
            self.next_scan = Instant::now();
        }
        for path in &event.paths {
            match self.own_key(path) {
                Some(key) => self.enqueue(key),
                // A folder that came or went with files in it.
                None if path.extension().is_none() => self.next_scan = Instant::now(),
                None => {}
            }
        }
    }

    /// Delivers what differs between the file and what was last delivered of it.
    fn read(&mut self, key: &Arc<str>, deliver: &mut dyn FnMut(&Message<'_>)) {
        let path = self.folder.join(&**key);
        // The version is taken first: a file that changes while it is read is read again.
        let read = fs::metadata(&path)
            .map(|metadata| Version::from(&metadata))
            .and_then(|version| Ok((version, fs::read(&path)?)));
        let was_unreadable = self.unreadable.remove(key);
        let (version, bytes) = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What an unreadable file held is not known here; its one row is, by its key.
                if was_unreadable && one_row_a_file(key) && !self.files.contains_key(key) {
                    deliver_one(key, 0, None, deliver);
                }
                return self.forget(key, deliver);
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot read a file, will try again");
                self.unreadable.insert(Arc::clone(key));
                return;
            }
        };
        let old = self
            .files
            .remove(key)
            .map(|state| state.rows)
            .unwrap_or_default();
        let mut rows = Vec::with_capacity(old.len().max(1));
        let mut deliver_row = |row: &[u8]| {
            let index = rows.len();
            // An empty line is no row; an empty file is one that cannot be used.
            let absent = row.is_empty() && !one_row_a_file(key);
            let digest = if absent { 0 } else { xxh3_64(row).max(1) };
            let before = old.get(index).copied().unwrap_or(0);
            rows.push(digest);
            if digest != before {
                deliver_one(key, index, (digest != 0).then_some(row), deliver);
            }
        };
        if one_row_a_file(key) {
            deliver_row(&bytes);
        } else {
            bytes
                .split(|byte| *byte == b'\n')
                .for_each(|line| deliver_row(line.trim_ascii()));
        }
        let kept = rows.len();
        for index in (kept..old.len()).filter(|index| old[*index] != 0) {
            deliver_one(key, index, None, deliver);
        }
        self.files
            .insert(Arc::clone(key), FileState { version, rows });
    }

    fn forget(&mut self, key: &Arc<str>, deliver: &mut dyn FnMut(&Message<'_>)) {
        let rows = self
            .files
            .remove(key)
            .map(|state| state.rows)
            .unwrap_or_default();
        for index in (0..rows.len()).filter(|index| rows[*index] != 0) {
            deliver_one(key, index, None, deliver);
        }
    }
}

fn unwatched(folder: &Path, error: &notify::Error) -> SourceError {
    SourceError::Fatal(format!(
        "cannot watch the folder \"{}\": {error}",
        folder.display()
    ))
}

fn hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn one_row_a_file(key: &str) -> bool {
    key.ends_with(".json")
}

/// Delivers one row under its key: the file's path, with the line's number where there are several.
fn deliver_one(
    file: &str,
    index: usize,
    value: Option<&[u8]>,
    deliver: &mut dyn FnMut(&Message<'_>),
) {
    if one_row_a_file(file) {
        deliver(&Message {
            key: Some(file.as_bytes()),
            value,
            headers: &|_| None,
            origin: file,
            offset: None,
        });
    } else {
        let key = format!("{file}#{}", index + 1);
        deliver(&Message {
            key: Some(key.as_bytes()),
            value,
            headers: &|_| None,
            origin: &key,
            offset: None,
        });
    }
}

impl Source for FilesSource {
    fn poll(
        &mut self,
        wait: Duration,
        deliver: &mut dyn FnMut(&Message<'_>),
    ) -> Result<Polled, SourceError> {
        if Instant::now() >= self.next_scan {
            self.scan()?;
        }
        self.watch(if self.to_read.is_empty() {
            wait
        } else {
            Duration::ZERO
        });
        for _ in 0..FILES_A_TURN {
            let Some(key) = self.to_read.pop_front() else {
                return Ok(Polled::CaughtUp);
            };
            self.queued.remove(&key);
            self.read(&key, deliver);
        }
        Ok(Polled::Some)
    }

    fn moved(&mut self) -> Vec<Reached> {
        Vec::new()
    }

    fn durable(&mut self, _: &[Offset]) {}

    fn lag(&self) -> Vec<Offset> {
        let share = format!("files/{}", self.share.worker);
        vec![(share.into(), self.to_read.len() as i64)]
    }

    fn replays(&self) -> bool {
        true
    }

    fn holds(&self, key: &str) -> bool {
        let file = match key.rsplit_once('#') {
            Some((file, _)) if !one_row_a_file(key) => file,
            _ => key,
        };
        self.share.holds(file) && !self.unreadable.contains(file)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Rows = BTreeMap<String, String>;

    /// Polls until the source has caught up, applying what it delivers.
    fn drain(source: &mut FilesSource, rows: &mut Rows) -> usize {
        let mut delivered = 0;
        loop {
            let polled = source.poll(Duration::ZERO, &mut |message| {
                delivered += 1;
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let key = text(message.key.unwrap());
                match message.value {
                    Some(value) => drop(rows.insert(key, text(value))),
                    None => drop(rows.remove(&key)),
                }
            });
            if polled.unwrap() == Polled::CaughtUp {
                return delivered;
            }
        }
    }

    fn rescan(source: &mut FilesSource, rows: &mut Rows) -> usize {
        source.next_scan = Instant::now();
        drain(source, rows)
    }

    fn open(folder: &Path) -> FilesSource {
        FilesSource::open(
            folder,
            Share {
                worker: 0,
                workers: 1,
            },
        )
        .unwrap()
    }

    fn rows(pairs: &[(&str, &str)]) -> Rows {
        pairs
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn files_and_lines_are_followed_through_every_change() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a.json", "{1}");
        write("b.jsonl", "{2}\n\n{3}\n{4}");
        write(".hidden.json", "{}");
        fs::create_dir(folder.path().join(".staging")).unwrap();
        write(".staging/d.json", "{}");
        write("empty.json", "");
        write("notes.txt", "x");
        let mut source = open(folder.path());
        let mut seen = Rows::new();
        drain(&mut source, &mut seen);
        assert_eq!(
            seen,
            rows(&[
                ("a.json", "{1}"),
                ("b.jsonl#1", "{2}"),
                ("empty.json", ""),
                ("b.jsonl#3", "{3}"),
                ("b.jsonl#4", "{4}"),
                ("empty.json", ""),
            ])
        );

        write("b.jsonl", "{2}\n{5}\n{3}");
        fs::create_dir(folder.path().join("deep")).unwrap();
        write("deep/c.json", "{6}");
        fs::remove_file(folder.path().join("a.json")).unwrap();
        assert_eq!(rescan(&mut source, &mut seen), 4);
        assert_eq!(
            seen,
            rows(&[
                ("b.jsonl#1", "{2}"),
                ("empty.json", ""),
                ("b.jsonl#2", "{5}"),
                ("b.jsonl#3", "{3}"),
                ("deep/c.json", "{6}"),
                ("empty.json", ""),
            ])
        );
    }

    #[test]
    fn touching_a_file_delivers_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        fs::write(&path, "{1}").unwrap();
        let (mut source, mut seen) = (open(folder.path()), Rows::new());
        assert_eq!(drain(&mut source, &mut seen), 1);
        let later = SystemTime::now() + Duration::from_secs(5);
        fs::File::open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(rescan(&mut source, &mut seen), 0);
    }

    #[test]
    fn a_change_is_found_by_notification_alone() {
        // Opened by a relative path, as users name their folders.
        let folder = tempfile::tempdir_in(".").unwrap();
        let name = Path::new(folder.path().file_name().unwrap());
        let (mut source, mut seen) = (open(name), Rows::new());
        drain(&mut source, &mut seen);
        source.next_scan = Instant::now() + Duration::from_secs(3600);
        fs::write(folder.path().join("a.json"), "{1}").unwrap();
        let started = Instant::now();
        while seen.is_empty() && started.elapsed() < Duration::from_secs(10) {
            source
                .poll(Duration::from_secs(1), &mut |message| {
                    seen.insert(
                        "a".to_owned(),
                        String::from_utf8_lossy(message.value.unwrap_or_default()).into_owned(),
                    );
                })
                .unwrap();
        }
        assert!(seen.contains_key("a"));
    }

    #[test]
    fn every_file_belongs_to_exactly_one_worker() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..50 {
            fs::write(folder.path().join(format!("{index}.json")), "{}").unwrap();
        }
        let mut all = Rows::new();
        let delivered: usize = (0..3)
            .map(|worker| {
                let share = Share { worker, workers: 3 };
                let mut source = FilesSource::open(folder.path(), share).unwrap();
                drain(&mut source, &mut all)
            })
            .sum();
        assert_eq!((delivered, all.len()), (50, 50));
    }

    #[test]
    fn a_missing_folder_is_refused_by_name() {
        let error = FilesSource::open(
            Path::new("no/such/folder"),
            Share {
                worker: 0,
                workers: 1,
            },
        );
        let message = error.err().map(|error| error.to_string()).unwrap();
        assert!(
            message.contains("no/such/folder\": No such file"),
            "{message}"
        );
    }
}
