//! What is in `deploy/` against the tools that read it, and against the panzer that it starts, so that neither goes stale.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use panzer::config::{Schedule, duration};

use crate::faults::{assert_answers, server};
use crate::support::{
    Builder, Panzer, copy_executable, eventually_some, free_port, require, require_module, there_is,
    with_real_interpreter, write_executable,
};

const SOON: Duration = Duration::from_secs(20);
const PANZER: &str = env!("CARGO_BIN_EXE_panzer");
const PANZERCTL: &str = env!("CARGO_BIN_EXE_panzerctl");
/// What the program of an image is replaced by here.
const PROGRAM: &str = "/srv/my_app/bin/my_app";

fn path_of(name: &str) -> String {
    format!("{}/deploy/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn deployed(name: &str) -> String {
    fs::read_to_string(path_of(name)).unwrap()
}

/// What stands behind `key` in each line of a file that begins so.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.trim_start().strip_prefix(key)).map(str::trim)
}

#[track_caller]
fn value<'a>(text: &'a str, key: &'a str) -> &'a str {
    values(text, key).next().unwrap_or_else(|| panic!("no {key}"))
}

/// The command line that stands behind `key`, as Docker and YAML have lists.
#[track_caller]
fn list(text: &str, key: &str) -> Vec<String> {
    serde_json::from_str(value(text, key)).unwrap()
}

/// The command lines by which Kubernetes looks at the container: startup, readiness, liveness.
fn probes(manifest: &str) -> Vec<Vec<String>> {
    let all = values(manifest, "command: ").map(|line| serde_json::from_str::<Vec<String>>(line).unwrap());
    all.filter(|line| line[0] == "panzerctl").collect()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

/// How long panzer may take to stop, as it says itself of this command line.
fn stops_within<S: AsRef<str>>(arguments: &[S]) -> Duration {
    let mut check = Command::new(PANZER);
    check.arg("--check").args(arguments.iter().map(AsRef::as_ref)).current_dir("/");
    let said = succeeds(&check.output().unwrap());
    let row = said.lines().find(|line| line.starts_with("stop ")).unwrap();
    row.split_whitespace().last().unwrap().parse::<Schedule>().unwrap().total()
}

/// The arguments of panzer in the unit.
fn start_of_the_unit(unit: &str) -> Vec<&str> {
    let line = value(unit, "ExecStart=/usr/local/bin/panzer ");
    line.split(' ').collect()
}

#[test]
fn systemd_accepts_the_units() {
    if !require("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let units = [("my_app.service", "my_app.service"), ("my_app.socket", "my_app.socket")];
    let units = units.into_iter().chain([("panzer@.service", "panzer@my_app.service")]);
    let units: Vec<_> = units.map(|(name, instance)| (name, folder.path().join(instance))).collect();
    for (name, file) in &units {
        // It looks for the binaries, too; the longer path first.
        let unit = deployed(name).replace("/usr/local/bin/", "/usr/bin/").replace("/usr/bin/panzerctl", PANZERCTL);
        fs::write(file, unit.replace("/usr/bin/panzer ", &format!("{PANZER} "))).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(units.iter().map(|(_, file)| file));
    let verified = verify.output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("my_app")).collect();
    assert!(verified.status.success() && of_ours.is_empty(), "{said}");
}

#[test]
fn the_unit_leaves_time_to_stop() {
    let unit = deployed("my_app.service");
    let limit = duration::parse(value(&unit, "TimeoutStopSec=")).unwrap();
    let schedule = stops_within(&start_of_the_unit(&unit));
    assert!(limit > schedule, "{limit:?} for {schedule:?}");
}

/// The unit of the package, with the file that the package shows.
#[test]
fn the_units_of_the_package_serve_what_its_file_names() {
    let unit = deployed("panzer@.service");
    let port = free_port();
    let builder = Panzer::builder().executable("my_app", &server("by a file"));
    let folder = builder.folder().to_owned();
    let file = deployed("my_app.yml").replace("/srv/my_app/current/bin/my_app", "./my_app");
    let file = file.replace("/srv/my_app/current", folder.to_str().unwrap());
    let file = file.replace("listen: 8000", &format!("listen: 127.0.0.1:{port}")).replace("user: www-data\n", "");
    fs::write(folder.join("my_app.yml"), file).unwrap();
    let arguments = value(&unit, "ExecStart=/usr/bin/panzer ").replace("/etc/panzer/", "").replace("%i", "my_app");
    let panzer = builder.args(arguments.split(' ')).start();
    panzer.wait_serving();
    assert_answers(port, "by a file");
    let limit = duration::parse(value(&unit, "TimeoutStopSec=")).unwrap();
    assert!(limit > stops_within(&["true"]));
}

/// Both units as systemd carries them out: the socket first, then the service on the first connection, then its reload.
#[test]
fn the_socket_unit_goes_with_the_service() {
    if !require("systemd-socket-activate") {
        return;
    }
    let (socket, service) = (deployed("my_app.socket"), deployed("my_app.service"));
    let (listens, name) = (value(&socket, "ListenStream="), value(&socket, "FileDescriptorName="));
    let port = free_port().to_string();
    let activate = format!(
        "#!/bin/sh\nexec systemd-socket-activate -l {port} --fdname={name} -E RUNTIME_DIRECTORY -E PWD -E PATH \"$@\"\n"
    );
    let builder = Panzer::builder().executable("activate", &activate).through("activate");
    let release = builder.folder().join("srv/my_app/current");
    fs::create_dir_all(release.join("bin")).unwrap();
    let program = release.join("bin/my_app");
    write_executable(&program, server("by both units"));
    let root = builder.folder().to_str().unwrap().to_owned();
    let arguments = start_of_the_unit(&service).into_iter().map(|argument| match argument {
        // The one port of both.
        same if same == listens => port.clone(),
        path if path.starts_with("/srv/") => format!("{root}{path}"),
        option => option.to_owned(),
    });
    let panzer = builder.args(arguments).args(["-w", "2", "--bake", "50ms"]).start();
    for line in ["Listening on *", "Communication attempt on fd 3", "Execing "] {
        panzer.expect_line(line);
    }
    panzer.wait_for_line("Listening on ", SOON);
    assert_answers(port.parse().unwrap(), "by both units");
    panzer.wait_serving();
    let reload = value(&service, "ExecReload=/usr/local/bin/panzerctl ");
    let run = || {
        let mut reload_it = Command::new(PANZERCTL);
        reload_it.args(reload.split(' ')).env("RUNTIME_DIRECTORY", panzer.path("run"));
        reload_it.output().unwrap()
    };
    succeeds(&run());
    write_executable(&program, "#!/bin/sh\nexit 1\n");
    panzer.expect_line("error: reload failed: generation 3: ");
    assert!(!run().status.success(), "systemctl reload does not tell that the release was rejected");
    panzer.stop();
}

#[test]
fn the_manifest_is_what_kubernetes_takes() {
    if !require_module("kubernetes_validate") {
        return;
    }
    let mut validate = Command::new("python3");
    validate.args(["-m", "kubernetes_validate", "--strict", &path_of("kubernetes.yml")]);
    let said = succeeds(&validate.env("PATH", with_real_interpreter()).output().unwrap());
    // A kind that it does not know is no error to it.
    for kind in ["deployment/my-app", "service/my-app", "poddisruptionbudget/my-app"] {
        assert!(said.contains(&format!("passed for resource {kind} ")), "{said}");
    }
}

/// The base, under the overlay that docs/platforms.md shows.
#[test]
fn kustomize_builds_on_the_manifest() {
    let base = deployed("kustomization.yaml");
    assert_eq!(values(&base, "- ").collect::<Vec<_>>(), ["kubernetes.yml"]);
    if !there_is("kubectl") {
        return;
    }
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/platforms.md")).unwrap();
    let overlay = page.split_once("<!-- file shop/kustomization.yaml -->\n```yaml\n").unwrap().1;
    let folder = tempfile::tempdir().unwrap();
    for name in ["shop", "deploy"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("shop/kustomization.yaml"), overlay.split("```").next().unwrap()).unwrap();
    for name in ["kustomization.yaml", "kubernetes.yml"] {
        fs::write(folder.path().join("deploy").join(name), deployed(name)).unwrap();
    }
    let mut build = Command::new("kubectl");
    build.args(["kustomize", "shop"]).current_dir(folder.path()).env("HOME", folder.path());
    let built = succeeds(&build.output().unwrap());
    for line in
        ["name: shop-my-app", "image: registry.example.org/shop:1.4.2", "replicas: 6", "kind: PodDisruptionBudget"]
    {
        assert!(built.contains(line), "{line}: {built}");
    }
}

#[test]
fn the_job_of_nomad_runs_and_leaves_time_to_stop() {
    let job = deployed("my_app.nomad.hcl");
    let port = free_port();
    let builder = Panzer::builder().executable("my_app", &server("by a job"));
    let program = builder.folder().join("my_app").to_str().unwrap().to_owned();
    let arguments = list(&job, "args    = ").into_iter().map(|argument| match argument.as_str() {
        "${NOMAD_ADDR_http}" => format!("127.0.0.1:{port}"),
        PROGRAM => program.clone(),
        _ => argument,
    });
    let arguments: Vec<String> = arguments.collect();
    let limit = duration::parse(value(&job, "kill_timeout   = ").trim_matches('"')).unwrap();
    assert!(limit > stops_within(&arguments), "{limit:?}");
    assert_eq!(value(&job, "kill_signal    = "), "\"SIGTERM\"");
    let panzer = builder.args(arguments).start();
    panzer.wait_serving();
    assert_answers(port, "by a job");
}

#[test]
fn the_job_of_nomad_is_in_its_language() {
    let mut parse = Command::new("python3");
    parse.args(["-c", "import sys\ntry: import hcl2\nexcept ImportError: sys.exit('skipped: no hcl2')\nprint(hcl2.load(open(sys.argv[1]))['job'])"]);
    let parsed = parse.arg(path_of("my_app.nomad.hcl")).env("PATH", with_real_interpreter()).output().unwrap();
    let said = String::from_utf8_lossy(&parsed.stderr);
    assert!(parsed.status.success() || said.starts_with("skipped: "), "{said}");
    eprintln!("{said}");
}

#[test]
fn a_linter_accepts_the_dockerfile() {
    if require("hadolint") {
        let mut lint = Command::new("hadolint");
        succeeds(&lint.args(["--failure-threshold", "warning", &path_of("Dockerfile")]).output().unwrap());
    }
}

/// Its first stage has no more of the sources than it copies.
#[test]
fn the_dockerfile_copies_what_the_build_needs() {
    let folder = tempfile::tempdir().unwrap();
    let dockerfile = deployed("Dockerfile");
    let sources = values(&dockerfile, "COPY ").filter(|line| !line.starts_with("--from"));
    for source in sources.flat_map(|line| line.split(' ').rev().skip(1).collect::<Vec<_>>()) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        assert!(from.exists(), "{source}");
        succeeds(&Command::new("cp").arg("-r").arg(from).arg(folder.path()).output().unwrap());
    }
    if nix::unistd::access(env!("CARGO"), nix::unistd::AccessFlags::X_OK).is_err() {
        return eprintln!("skipped: this user may not execute {}", env!("CARGO"));
    }
    // Cargo refuses a manifest whose targets are not there.
    let mut read = Command::new(env!("CARGO"));
    read.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]).current_dir(folder.path());
    let targets = succeeds(&read.output().unwrap());
    for binary in ["src/bin/panzer.rs", "src/bin/panzerctl.rs", "src/lib.rs"] {
        assert!(targets.contains(binary) && folder.path().join(binary).exists(), "{binary}");
    }
}

#[test]
fn the_manifest_leaves_time_to_stop_and_to_answer() {
    let manifest = deployed("kubernetes.yml");
    let limit = value(&manifest, "terminationGracePeriodSeconds: ").parse::<u64>().unwrap();
    let sleeps = values(&manifest, "command: ").find_map(|line| line.strip_prefix("[\"sleep\", \"")).unwrap();
    let sleeps = sleeps.trim_end_matches("\"]").parse::<u64>().unwrap();
    let schedule = stops_within(&list(&manifest, "args: "));
    assert!(Duration::from_secs(limit - sleeps) > schedule, "{limit} s for {sleeps} s and {schedule:?}");
    // Whoever is cut off cannot say why.
    let limits = values(&manifest, "timeoutSeconds: ").map(|seconds| seconds.parse::<u64>().unwrap());
    let probes = probes(&manifest);
    assert_eq!(probes.len(), 3);
    for (limit, probe) in limits.zip(probes) {
        let own = duration::parse(probe.last().unwrap()).unwrap();
        assert!(own < Duration::from_secs(limit), "{probe:?} within {limit} s");
    }
}

/// As a container runs it: PID 1, not root, without any capability, no new privileges, in a folder of somebody else's.
const CONTAINER: &str = "#!/bin/sh
binaries=${0%/*} && shift
exec unshare -pf --mount-proc setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all \\
    --inh-caps=-all --no-new-privs \"$binaries/panzer\" \"$@\"
";

fn container(arguments: Vec<String>, image: &str) -> (Builder, u16) {
    let port = free_port();
    let builder = Panzer::builder().executable("container", CONTAINER).through("container");
    let builder = builder.executable("my_app", &server("contained"));
    // The ones that the tests were built with may be where nobody else may enter.
    for binary in [PANZER, PANZERCTL] {
        copy_executable(binary, builder.folder().join(Path::new(binary).file_name().unwrap()));
    }
    for folder in [builder.folder().to_owned(), builder.folder().join("tmp")] {
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let runtime = value(image, "ENV RUNTIME_DIRECTORY=").trim_start_matches('/');
    let runtime = builder.folder().join(runtime);
    let program = builder.folder().join("my_app").to_str().unwrap().to_owned();
    let arguments = arguments.into_iter().map(|argument| match argument.as_str() {
        "8000" => port.to_string(),
        PROGRAM => program.clone(),
        _ => argument,
    });
    let arguments: Vec<String> = arguments.collect();
    assert!(arguments.contains(&program) && arguments.contains(&port.to_string()), "{arguments:?}");
    // The system's own interpreter: a user's is often in a folder that nobody else may enter.
    let builder = builder.env("RUNTIME_DIRECTORY", &runtime).env("PATH", "/usr/bin:/bin").args(arguments);
    (builder.args(["-w", "2"]), port)
}

/// Runs a probe as the container's engine does: in its namespaces, as its user, with its environment.
fn probed(panzer: &Panzer, main: i32, image: &str, probe: &[String]) -> bool {
    let runtime = panzer.path(value(image, "ENV RUNTIME_DIRECTORY=").trim_start_matches('/'));
    let mut entered = Command::new("nsenter");
    entered.args(["-t", &main.to_string(), "-p", "-m", "setpriv", "--reuid", "10001", "--regid", "10001"]);
    entered.args(["--clear-groups", "--no-new-privs"]).arg(panzer.path(&probe[0])).args(&probe[1..]);
    entered.env("RUNTIME_DIRECTORY", runtime).env_remove("XDG_RUNTIME_DIR").output().unwrap().status.success()
}

fn may_contain() -> bool {
    let can = nix::unistd::geteuid().is_root() && Path::new("/usr/bin/python3").exists();
    if !can {
        eprintln!("skipped: a container takes root, and a python3 of the system's");
    }
    can && ["unshare", "nsenter", "setpriv"].into_iter().all(require)
}

fn runs_contained(arguments: Vec<String>, probes: &[Vec<String>]) {
    if !may_contain() {
        return;
    }
    let image = deployed("Dockerfile");
    let (builder, port) = container(arguments, &image);
    let panzer = builder.start();
    panzer.wait_for_line("started as pid 1 ", SOON);
    let main = eventually_some(SOON, "panzer is in its namespace", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", panzer.pid())).ok()?;
        children.split_whitespace().next()?.parse::<i32>().ok()
    });
    panzer.wait_serving();
    for probe in probes {
        assert!(probed(&panzer, main, &image, probe), "{probe:?}");
    }
    assert_answers(port, "contained");
    let signal = value(&image, "STOPSIGNAL ").parse::<Signal>().unwrap();
    kill(Pid::from_raw(main), signal).unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn the_image_runs_as_it_says() {
    let image = deployed("Dockerfile");
    assert_eq!(list(&image, "ENTRYPOINT "), ["panzer"]);
    // The health check's CMD comes first.
    let commands: Vec<Vec<String>> = values(&image, "CMD ").map(|line| serde_json::from_str(line).unwrap()).collect();
    let [health, arguments] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!(health[0], "panzerctl");
    assert!(value(&image, "COPY examples/my_app ").starts_with(PROGRAM));
    runs_contained(arguments.clone(), std::slice::from_ref(health));
}

#[test]
fn the_pod_runs_as_the_manifest_says() {
    let manifest = deployed("kubernetes.yml");
    // What the image's user makes there is in a folder that the pod may write to.
    let runtime = deployed("Dockerfile");
    assert!(value(&runtime, "ENV RUNTIME_DIRECTORY=").starts_with(&format!("{}/", value(&manifest, "mountPath: "))));
    runs_contained(list(&manifest, "args: "), &probes(&manifest));
}
