//! Sets up a simulated node from a shell and does to it what happens to machines.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool prints")]

use std::path::Path;
use std::process::ExitCode;

use nvml_sim::{HARDWARE_LATENCY_MS, Process, SimNode, Snapshot, parse_gpus};

const USAGE: &str = "\
nvml-sim create DIR --gpus 2xH100-80GB,L4 [--hardware-latency]
                                       a node in DIR; prints the library, whose folder a program needs
                                       in LD_LIBRARY_PATH
nvml-sim show DIR                      its GPUs and instances
nvml-sim plant DIR GPU PROFILE START   an instance that another program created
nvml-sim process DIR GPU PID [GI [CI]] a running process;      nvml-sim kill DIR GPU PID
nvml-sim hold DIR GPU CLIENT [GI]      an open handle of another program;  nvml-sim release DIR GPU CLIENT
nvml-sim xid DIR GPU XID [GI [CI]]     an XID event
nvml-sim ecc DIR GPU single|double [GI [CI]]
                                       an ECC error, corrected or not
nvml-sim recovery-action DIR GPU N     what NVML recommends: 0 nothing, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset
nvml-sim lose DIR GPU                  the GPU falls off the bus;  nvml-sim recover DIR GPU
nvml-sim reset DIR GPU                 a GPU reset
nvml-sim reboot DIR                    a power cycle
nvml-sim fault DIR JSON                a fault:
             '{\"call\":\"nvmlGpuInstanceDestroy\",\"times\":1,\"action\":{\"return\":19}}'
nvml-sim heal DIR                      removes all faults
Configuration by hand: DIR/nvml-sim/config.json and faults.json, read again by each call.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nvml-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    match words {
        ["create", dir, "--gpus", gpus, rest @ ..] => {
            let node = SimNode::create(Path::new(dir), &parse_gpus(gpus)?)?;
            match rest {
                [] => {}
                ["--hardware-latency"] => {
                    for (call, milliseconds) in HARDWARE_LATENCY_MS {
                        node.set_latency(call, *milliseconds)?;
                    }
                }
                _ => return Err(USAGE.into()),
            }
            println!("{}", node.library().display());
        }
        ["show", dir] => show(&open(dir)?.snapshot()?),
        ["plant", dir, gpu, profile, start] => {
            let made = open(dir)?.plant_instance(gpu.parse()?, profile, start.parse()?)?;
            println!("gi {} ci {} {}", made.gpu_instance, made.compute_instance, made.uuid);
        }
        ["process", dir, gpu, pid, place @ ..] => {
            let (gpu_instance, compute_instance) = instance(place)?;
            let process = Process { pid: pid.parse()?, gpu_instance, compute_instance, memory_mib: 512 };
            open(dir)?.plant_process(gpu.parse()?, process)?;
        }
        ["kill", dir, gpu, pid] => open(dir)?.remove_process(gpu.parse()?, pid.parse()?)?,
        ["hold", dir, gpu, client, place @ ..] => {
            open(dir)?.hold_handle(gpu.parse()?, instance(place)?.0, client)?
        }
        ["release", dir, gpu, client] => open(dir)?.release(gpu.parse()?, client)?,
        ["xid", dir, gpu, xid, place @ ..] => {
            let (gi, ci) = instance(place)?;
            open(dir)?.post_xid(gpu.parse()?, xid.parse()?, gi, ci)?;
        }
        ["ecc", dir, gpu, kind @ ("single" | "double"), place @ ..] => {
            let (gi, ci) = instance(place)?;
            open(dir)?.post_ecc(gpu.parse()?, *kind == "double", gi, ci)?;
        }
        ["recovery-action", dir, gpu, action] => {
            open(dir)?.set_recovery_action(gpu.parse()?, Some(action.parse()?))?;
        }
        ["recover", dir, gpu] => open(dir)?.recover_gpu(gpu.parse()?)?,
        ["lose", dir, gpu] => open(dir)?.lose_gpu(gpu.parse()?)?,
        ["reset", dir, gpu] => open(dir)?.reset_gpu(gpu.parse()?)?,
        ["reboot", dir] => open(dir)?.reboot()?,
        ["fault", dir, json] => open(dir)?.inject(serde_json::from_str(json)?)?,
        ["heal", dir] => open(dir)?.clear_faults()?,
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

fn open(dir: &str) -> Result<SimNode, String> {
    SimNode::open(Path::new(dir)).map_err(|error| format!("{dir} is no simulated node: {error}"))
}

/// `[GI [CI]]`.
fn instance(words: &[&str]) -> Result<(Option<u32>, Option<u32>), Box<dyn std::error::Error>> {
    match words {
        [] => Ok((None, None)),
        [gi] => Ok((Some(gi.parse()?), None)),
        [gi, ci] => Ok((Some(gi.parse()?), Some(ci.parse()?))),
        _ => Err(USAGE.into()),
    }
}

fn show(node: &Snapshot) {
    for gpu in &node.gpus {
        let mode = if gpu.mig_current { "MIG" } else { "whole" };
        println!("GPU {} {} {} minor {} {} {mode}", gpu.index, gpu.pci, gpu.model, gpu.minor, gpu.uuid);
        for instance in &gpu.gpu_instances {
            let end = instance.start + instance.size;
            println!("  gi {:2} {:12} units {}..{end}", instance.id, instance.profile, instance.start);
            for compute in &instance.compute_instances {
                println!(
                    "    ci {} {} slice(s) from {} {}",
                    compute.id, compute.size, compute.start, compute.uuid
                );
            }
        }
    }
}
