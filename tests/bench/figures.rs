//! The figures of the driver: how long its calls take beyond NVML's own time, how well GPUs work in parallel, how fast it
//! starts, how big it is. `cargo bench` prints them with their spread and the target of each. Nothing fails because a
//! machine is slow: a missed target is printed, and the exit status is 0.
//!
//! The driver is the release binary in a process of its own. Around it are the simulated library, an API server and a
//! kubelet over the real sockets; the last two live in this process and share the machine's cores with the driver.
//! What they take counts as the driver's. All metrics are on and are read once a second, far more often than usual.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod node;
mod nvml_time;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod reader;
mod spread;

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, ensure};
use futures::future::try_join_all;
use kube_sim::kubelet::{Claim, Plugin};
use nvml_sim::Call;

use node::{Driver, Node, binary, forced_write, scheduled};
use nvml_time::{Window, inside_nvml};
use reader::Reader;
use spread::{Samples, Table};

const STARTS: usize = 15;
const BURSTS: usize = 3;
/// Samples of one prepare: enough that the three slowest are above p99.
const PREPARES: usize = 400;
const FORCED_WRITES: usize = 100;

/// Assumed times of real hardware (mig-nvml-cdi.md 3.2).
const CREATE_GPU_INSTANCE_MS: f64 = 300.0;
const CREATE_COMPUTE_INSTANCE_MS: f64 = 100.0;
const INSTANCES_PER_GPU: f64 = 7.0;

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` runs benchmarks, too, without this argument.
    if !std::env::args().any(|it| it == "--bench") {
        println!("nothing was measured: run it with `cargo bench`");
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?;
    // Share of the time in which something waited for a core; not every kernel tells.
    let load =
        || fs::read_to_string("/proc/pressure/cpu").unwrap_or_default().lines().next().map(str::to_owned);
    println!("{} on {cores} cores; pressure on them: {}", binary().display(), load().unwrap_or_default());
    let node = Node::new().await?;
    let table =
        measure_on(&node).await.with_context(|| format!("the driver's log ends so:\n{}", node.log_tail()))?;
    print!("{}", table.render());
    println!(
        "NVML's own time is taken from the simulator's call log: the time during which at least one call of the driver\n\
         was running. Writing the log, the API server's answers and the kubelet's side of gRPC count as the driver's.\n\
         The driver's state is on the disk of {};\n\
         pressure on the cores now: {}",
        env!("CARGO_TARGET_TMPDIR"),
        load().unwrap_or_default()
    );
    Ok(())
}

async fn measure_on(node: &Node) -> anyhow::Result<Table> {
    let mut table = Table::default();
    node.sim.configure(|config| config.log_calls = true)?;

    println!("measuring {STARTS} starts");
    starts(node, &mut table).await?;

    let driver = node.start().await?;
    let reader = Reader::every(node.metrics, Duration::from_secs(1));
    let published = driver.memory_kib("VmRSS")? / 1024.0;
    let (kubelet, claims) = (node.kubelet().await?, node.allocated_claims()?);
    ensure!(claims.len() == 56, "eight H100 have 56 placements of 1g.10gb, found {}", claims.len());
    println!("measuring {BURSTS} bursts of {} claims", claims.len());
    let memory = bursts(node, &driver, &kubelet, &claims, &mut table).await?;

    let forced = Samples::milliseconds(repeated_forced_writes(node)?);
    println!("measuring {PREPARES} prepares, twice");
    // The node is full after the bursts: a claim goes and comes back, with 55 others around it.
    calls(node, &driver, &kubelet, &claims, Others::Prepared, &mut table).await?;
    let late = driver.memory_kib("VmRSS")? / 1024.0;
    try_join_all(claims.iter().map(|it| unprepare(&kubelet, it))).await?;
    calls(node, &driver, &kubelet, &claims, Others::None, &mut table).await?;
    table.shown("one forced 1 KiB file with its directory, same disk, same run", forced.cells("ms"));

    sizes(&driver, &memory, [published, late], &mut table)?;
    table.shown("readings of the metrics meanwhile", (reader.count().to_string(), String::new()));
    drop(reader);
    driver.stop()?;
    Ok(table)
}

/// Start of the process until the API server has the pool, less the time inside NVML.
async fn starts(node: &Node, table: &mut Table) -> anyhow::Result<()> {
    let (mut beyond, mut inside) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let driver = node.start().await?;
        let nvml = inside_nvml(&node.calls_of(&driver)?, driver.start);
        beyond.push(driver.start.took - nvml);
        inside.push(nvml);
        driver.stop()?;
    }
    let beyond = Samples::milliseconds(beyond);
    let is_met = beyond.max() <= 300.0;
    table.judged("start to pool accepted, beyond NVML, 8 H100", beyond.cells("ms"), "max 300 ms", is_met);
    table.shown("inside NVML until then", Samples::milliseconds(inside).cells("ms"));
    Ok(())
}

/// All 56 claims at once, GPU instances taking their assumed time. Leaves them prepared; answers with the resident memory
/// after each burst, in MiB.
async fn bursts(
    node: &Node,
    driver: &Driver,
    kubelet: &Plugin,
    claims: &[Claim],
    table: &mut Table,
) -> anyhow::Result<Samples> {
    node.sim.configure(|config| {
        config.log_calls = false;
        for (call, milliseconds) in [
            ("nvmlDeviceCreateGpuInstance", CREATE_GPU_INSTANCE_MS),
            ("nvmlDeviceCreateGpuInstanceWithPlacement", CREATE_GPU_INSTANCE_MS),
            ("nvmlGpuInstanceCreateComputeInstance", CREATE_COMPUTE_INSTANCE_MS),
            ("nvmlGpuInstanceCreateComputeInstanceWithPlacement", CREATE_COMPUTE_INSTANCE_MS),
        ] {
            config.latency_ms.insert(call.to_owned(), milliseconds);
        }
    })?;
    let (mut times, mut resident) = (Vec::new(), Vec::new());
    for burst in 0..BURSTS {
        if burst > 0 {
            try_join_all(claims.iter().map(|it| unprepare(kubelet, it))).await?;
        }
        let clock = Instant::now();
        try_join_all(claims.iter().map(|it| prepare(kubelet, it))).await?;
        times.push(clock.elapsed());
        resident.push(driver.memory_kib("VmRSS")? / 1024.0);
    }
    node.sim.configure(|config| {
        config.log_calls = true;
        config.latency_ms.clear();
    })?;
    let ideal = INSTANCES_PER_GPU * (CREATE_GPU_INSTANCE_MS + CREATE_COMPUTE_INSTANCE_MS);
    let ratio = Samples::new(times.iter().map(|it| it.as_secs_f64() * 1000.0 / ideal));
    let is_met = ratio.max() <= 1.2;
    let figure = "56 claims at once, GI 300 ms and CI 100 ms, to 7 x 400 ms";
    table.judged(figure, ratio.cells("times"), "max 1.2 times", is_met);
    table.shown("in all", Samples::milliseconds(times).cells("ms"));
    Ok(Samples::new(resident))
}

/// What the other claims are while one is prepared and unprepared.
#[derive(Clone, Copy, PartialEq)]
enum Others {
    Prepared,
    None,
}

/// One claim after the other, unprepared and prepared or the other way round.
async fn calls(
    node: &Node,
    driver: &Driver,
    kubelet: &Plugin,
    claims: &[Claim],
    others: Others,
    table: &mut Table,
) -> anyhow::Result<()> {
    let (requests_before, waited_before) = (node.requests(), waits(driver)?);
    let (mut prepares, mut unprepares) = (Vec::new(), Vec::new());
    for claim in claims.iter().cycle().take(PREPARES) {
        if others == Others::Prepared {
            unprepares.push(timed(unprepare(kubelet, claim)).await?);
        }
        prepares.push(timed(prepare(kubelet, claim)).await?);
        if others == Others::None {
            unprepares.push(timed(unprepare(kubelet, claim)).await?);
        }
    }
    let requests = count(node.requests() - requests_before);
    let [on_core, waited, waited_here] = waits(driver)?;
    let log = node.calls_of(driver)?;
    let among = if others == Others::Prepared { "55 others prepared" } else { "no other" };
    let beyond = beyond_nvml(&log, &prepares);
    let is_met = beyond.median() <= 5.0 && beyond.p99() <= 25.0;
    let figure = format!("prepare, beyond NVML, {among}");
    table.judged(&figure, beyond.cells("ms"), "median 5, p99 25 ms", is_met);
    table.shown("in all", Samples::milliseconds(prepares.iter().map(|it| it.took)).cells("ms"));
    let each = format!("{:.2}", requests / count(prepares.len()));
    table.shown("requests to the API server for a prepare and an unprepare", (each, String::new()));
    let mean = |now: f64, before: f64| {
        (format!("{:.2} ms", (now - before) / count(prepares.len())), "mean of both together".to_owned())
    };
    table.shown("the driver on a core", mean(on_core, waited_before[0]));
    table.shown("the driver's threads waiting for a core", mean(waited, waited_before[1]));
    table.shown("this process's threads waiting for a core", mean(waited_here, waited_before[2]));
    table.shown(&format!("unprepare, beyond NVML, {among}"), beyond_nvml(&log, &unprepares).cells("ms"));
    Ok(())
}

/// How long the driver has had a core and waited for one, and how long this process has waited, in milliseconds.
fn waits(driver: &Driver) -> anyhow::Result<[f64; 3]> {
    let ([on_core, waited], [_, waited_here]) = (driver.on_core_and_waiting()?, scheduled("self")?);
    Ok([on_core, waited, waited_here])
}

#[expect(clippy::cast_precision_loss, reason = "there are far fewer than 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}

fn beyond_nvml(log: &[Call], windows: &[Window]) -> Samples {
    Samples::milliseconds(windows.iter().map(|it| it.took.saturating_sub(inside_nvml(log, *it))))
}

async fn timed(call: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Window> {
    let (began, clock) = (SystemTime::now(), Instant::now());
    call.await?;
    Ok(Window { began, took: clock.elapsed() })
}

async fn prepare(kubelet: &Plugin, claim: &Claim) -> anyhow::Result<()> {
    let answer = kubelet.prepare(std::slice::from_ref(claim)).await?;
    for (uid, devices) in answer {
        let devices = devices.map_err(|error| anyhow!("prepare {uid}: {error}"))?;
        ensure!(devices.len() == 1, "prepare {uid}: {} devices", devices.len());
    }
    Ok(())
}

async fn unprepare(kubelet: &Plugin, claim: &Claim) -> anyhow::Result<()> {
    let answer = kubelet.unprepare(std::slice::from_ref(claim)).await?;
    answer.into_iter().try_for_each(|(uid, it)| it.map_err(|error| anyhow!("unprepare {uid}: {error}")))
}

fn repeated_forced_writes(node: &Node) -> anyhow::Result<Vec<Duration>> {
    (0..FORCED_WRITES).map(|_| forced_write(node.disk.path())).collect()
}

/// `around` is the resident memory before anything was prepared, and at the end.
fn sizes(driver: &Driver, memory: &Samples, around: [f64; 2], table: &mut Table) -> anyhow::Result<()> {
    let is_met = memory.max() <= 18.5;
    let figure = "resident with 8 H100 published, 56 claims prepared";
    table.judged(figure, memory.cells("MiB"), "max 18.5 MiB", is_met);
    let mut shown = |what: &str, mib: f64| table.shown(what, (format!("{mib:.2} MiB"), String::new()));
    let [published, late] = around;
    shown("with nothing prepared yet", published);
    shown(&format!("the same after {PREPARES} more prepares and unprepares"), late);
    shown("most ever (VmHWM)", driver.memory_kib("VmHWM")? / 1024.0);
    shown("of which now: own pages (RssAnon)", driver.memory_kib("RssAnon")? / 1024.0);
    shown("of which now: mapped files (RssFile)", driver.memory_kib("RssFile")? / 1024.0);

    #[expect(clippy::cast_precision_loss, reason = "a file size in MB, shown with two digits")]
    let megabytes = fs::metadata(binary())?.len() as f64 / 1e6;
    let cells = (format!("{megabytes:.2} MB"), String::new());
    table.judged("stripped release binary", cells, "max 11.1 MB", megabytes <= 11.1);
    Ok(())
}
