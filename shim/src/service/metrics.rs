//! Statistics of a container in the message that containerd's clients know: cgroup v2 metrics.

use bulkhead_protocols::agent::StatsResponse;
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use ttrpc::{Code, get_status};

/// By this name containerd's clients know the message.
const NAME: &str = "io.containerd.cgroups.v2.Metrics";

/// The message in the shape in which it travels.
pub fn any(stats: &StatsResponse) -> ttrpc::Result<Any> {
    let value = metrics(stats).write_to_bytes().map_err(|error| {
        let text = format!("the statistics cannot be encoded: {error}");
        ttrpc::Error::RpcStatus(get_status(Code::INTERNAL, text))
    })?;
    Ok(Any { type_url: NAME.to_owned(), value, ..Default::default() })
}

/// Copies the numbers over; a number that the guest does not give is 0.
fn metrics(stats: &StatsResponse) -> Metrics {
    let (cpu, memory, pids) = (&stats.cpu, &stats.memory, &stats.pids);
    let stat = |name: &str| memory.stat.get(name).copied().unwrap_or(0);
    let event = |name: &str| memory.events.get(name).copied().unwrap_or(0);
    Metrics {
        pids: MessageField::some(PidsStat {
            current: pids.current,
            // The field of an unlimited container is 0 in containerd's own reading.
            limit: if pids.limit == u64::MAX { 0 } else { pids.limit },
            ..Default::default()
        }),
        cpu: MessageField::some(CPUStat {
            usage_usec: cpu.usage_us,
            user_usec: cpu.user_us,
            system_usec: cpu.system_us,
            nr_periods: cpu.nr_periods,
            nr_throttled: cpu.nr_throttled,
            throttled_usec: cpu.throttled_us,
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStat {
            anon: stat("anon"),
            file: stat("file"),
            kernel_stack: stat("kernel_stack"),
            slab: stat("slab"),
            sock: stat("sock"),
            shmem: stat("shmem"),
            file_mapped: stat("file_mapped"),
            file_dirty: stat("file_dirty"),
            file_writeback: stat("file_writeback"),
            inactive_anon: stat("inactive_anon"),
            active_anon: stat("active_anon"),
            inactive_file: stat("inactive_file"),
            active_file: stat("active_file"),
            unevictable: stat("unevictable"),
            slab_reclaimable: stat("slab_reclaimable"),
            slab_unreclaimable: stat("slab_unreclaimable"),
            pgfault: stat("pgfault"),
            pgmajfault: stat("pgmajfault"),
            usage: memory.usage,
            usage_limit: memory.usage_limit,
            swap_usage: memory.swap_usage,
            swap_limit: memory.swap_limit,
            ..Default::default()
        }),
        memory_events: MessageField::some(MemoryEvents {
            low: event("low"),
            high: event("high"),
            max: event("max"),
            oom: event("oom"),
            oom_kill: event("oom_kill"),
            ..Default::default()
        }),
        io: MessageField::some(IOStat {
            usage: stats
                .io
                .iter()
                .map(|device| IOEntry {
                    major: device.major,
                    minor: device.minor,
                    rbytes: device.rbytes,
                    wbytes: device.wbytes,
                    rios: device.rios,
                    wios: device.wios,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}
