//! What the kernel knows about a process: CPU time, memory, limits.

use std::fs;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::Outcome;

/// User and system time of all threads, ended ones included, in nanoseconds: /proc/PID/stat has ticks of 10 ms.
pub(crate) fn cpu_time(pid: u32) -> Outcome<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    Ok(clock_getcpuclockid(pid)?.now()?.into())
}

/// Resident memory in KiB.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
}

pub(crate) fn memory(pid: u32) -> Outcome<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |field: &str| -> Outcome<u64> {
        let line = status.lines().find(|line| line.starts_with(field));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(value.ok_or_else(|| format!("no {field} of process {pid}"))?.parse()?)
    };
    Ok(Memory { now: kib("VmRSS:")?, peak: kib("VmHWM:")? })
}

/// How many descriptors this process and its children may have.
pub(crate) fn descriptor_limit() -> Outcome<u64> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    match soft.ok_or("no limit of descriptors in /proc/self/limits")? {
        "unlimited" => Ok(u64::MAX),
        number => Ok(number.parse()?),
    }
}
