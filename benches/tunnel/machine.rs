//! The one line that says what the numbers were measured on.

use std::{fs, process::Command, thread};

pub(crate) fn describe() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Machine: {}, {cores} cores, Linux {}, {}, {}; TCP congestion control {}, rmem_max {} bytes.",
        cpu_model(),
        kernel_value("kernel/osrelease"),
        output_of("rustc", &["--version"]),
        output_of("date", &["-u", "+%Y-%m-%d"]),
        kernel_value("net/ipv4/tcp_congestion_control"),
        kernel_value("net/core/rmem_max"),
    )
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| format!("{} CPU", std::env::consts::ARCH), |(_, name)| name.trim().to_owned())
}

fn kernel_value(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{name}")).map_or_else(|_| "?".into(), |text| text.trim().to_owned())
}

fn output_of(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(_) => format!("{program} ?"),
    }
}
