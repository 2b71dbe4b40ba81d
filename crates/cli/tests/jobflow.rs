//! Queues of jobflow-remote, with the real package.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use std::process::Command;
use std::sync::Arc;
use testkit::mongod::Mongod;

/// A project of jobflow-remote on a real server.
struct Project<'a> {
    host: &'a Host,
    mongod: Arc<Mongod>,
    name: &'static str,
    database: String,
}

impl<'a> Project<'a> {
    fn new(host: &'a Host, name: &'static str, jobs: &str) -> Project<'a> {
        let mongod = Mongod::shared();
        let database = mongod.database_name();
        let (server, port) = mongod.host().split_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
        let store = |collection: &str| {
            format!(
                "{{type: MongoStore, host: {server}, port: {port}, database: {database}, collection_name: {collection}, \
                 mongoclient_kwargs: {{directConnection: true}}}}"
            )
        };
        let work = host.path("work").display().to_string();
        host.write(
            &format!("projects/{name}.yaml"),
            format!(
                "name: {name}\nworkers:\n  local: {{type: local, scheduler_type: shell, work_dir: {work}}}\n\
                 queue:\n  store: {}\n  flows_collection: {jobs}_flows\njobstore:\n  docs_store: {}\n",
                store(jobs),
                store("outputs")
            ),
        );
        Project { host, mongod, name, database }
    }

    fn file(&self) -> String {
        self.host.path(&format!("projects/{}.yaml", self.name)).display().to_string()
    }

    /// Lets the real package do something; gives what it says.
    fn jobflow(&self, arguments: &[&str]) -> String {
        let python = std::env::var_os("REWOUND_TEST_JOBFLOW");
        let python = python.expect("REWOUND_TEST_JOBFLOW does not say where jobflow-remote is: run ./dev/test");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/jobflow/real_queue.py");
        let output = Command::new(python)
            .args(["-W", "ignore", script])
            .args(arguments)
            .current_dir(self.host.path("."))
            .env("JFREMOTE_PROJECTS_FOLDER", self.host.path("projects"))
            .env("JFREMOTE_PROJECT", self.name)
            .env("HOME", self.host.path("."))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn documents(&self, collection: &str) -> Vec<Vec<u8>> {
        let mut documents = self.mongod.documents(&self.database, collection);
        documents.sort();
        documents
    }
}

#[test]
fn a_queue_moves_to_another_project() {
    let host = Host::ready();
    let (from, to) = (Project::new(&host, "one", "jobs"), Project::new(&host, "two", "other"));
    from.jobflow(&["fill"]);
    let ran = host.run(&["backup", "--jobflow", &from.file(), "--to", "v"]).ends(0);
    assert!(ran.out.contains("jobs collection: 10 documents"), "{}", ran.out);
    assert!(
        ran.out.contains("flows collection: 5 documents") && ran.err.contains("JobStore"),
        "{}{}",
        ran.out,
        ran.err
    );

    // The second backup reads what has changed, under the same names.
    let job = from.documents("jobs").len();
    from.mongod.done(&from.database, bson::doc! { "insert": "jobs", "documents": [{ "_id": "one more" }] });
    let ran = host.run(&["backup", "--jobflow", &from.file(), "--to", "v", "--json"]).ends(0);
    assert_eq!((&ran.summary()["mode"], &ran.summary()["changes"]), (&"changes".into(), &1.into()), "{}", ran.out);
    assert_eq!(from.documents("jobs").len(), job + 1);
    let back = bson::doc! { "delete": "jobs", "deletes": [{ "q": { "_id": "one more" }, "limit": 1 }] };
    from.mongod.done(&from.database, back);
    host.run(&["backup", "--jobflow", &from.file(), "--to", "v"]).ends(0);

    // A new project is no hindrance; one with jobs is.
    to.jobflow(&["reset"]);
    host.read(&["restore", "v", "--jobflow", &to.file()]).ends(0);
    assert_eq!(from.jobflow(&["show"]), to.jobflow(&["show"]));
    for (here, there) in [("jobs", "other"), ("jobs_flows", "other_flows"), ("jf_auxiliary", "jf_auxiliary")] {
        assert_eq!(from.documents(here), to.documents(there), "{here}");
        assert!(!from.documents(here).is_empty());
    }
    let refused = host.read(&["restore", "v", "--jobflow", &to.file()]).fails(1, "is not empty");
    assert!(refused.err.contains(&format!("{}.other (10 documents)", to.database)), "{}", refused.err);
    host.run(&["backup", "--jobflow", "nothing.yaml", "--to", "v"]).ends(2);

    // What the real package has dumped comes back through us, and the other way round.
    from.jobflow(&["dump", "theirs"]);
    to.jobflow(&["reset"]);
    let ran = host.read(&["copy", "mongodump:theirs", &format!("jobflow:{}", to.file())]).ends(0);
    assert_eq!(from.documents("jobs"), to.documents("other"), "{}", ran.out);
    let dry = host.read(&[
        "copy",
        "mongodump:theirs",
        &format!("jobflow:{}", from.file()),
        "--if-exists",
        "replace",
        "--dry-run",
    ]);
    assert!(dry.ends(0).out.contains("index rebuild"), "a dump of --python says what it has no indexes for");
    to.jobflow(&["reset"]);
    host.read(&["copy", &format!("jobflow:{}", from.file()), "mongodump:ours"]).ends(0);
    to.jobflow(&["restore", &format!("ours/{}", from.database)]);
    assert_eq!(from.jobflow(&["show"]), to.jobflow(&["show"]));
    assert_eq!(from.documents("jobs_flows"), to.documents("other_flows"));
}
