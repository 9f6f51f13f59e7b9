//! Statistics of a container in the message that containerd's clients know: cgroup v2 metrics.

use bulkhead_protocols::agent::StatsResponse;
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use protobuf::MessageField;

use super::error::packed;

/// By this name containerd's clients know the message.
const NAME: &str = "io.containerd.cgroups.v2.Metrics";

/// The numbers in the shape in which they travel.
pub fn any(stats: &StatsResponse) -> ttrpc::Result<Any> {
    packed(NAME, &metrics(stats))
}

/// A message that has numbers of the guest under their own names.
macro_rules! named {
    ($numbers:expr, $message:ident { $($name:ident)* }) => {
        $message {
            $($name: $numbers.get(stringify!($name)).copied().unwrap_or(0),)*
            ..Default::default()
        }
    };
}

/// Copies the numbers over; a number that the guest does not give is 0.
fn metrics(stats: &StatsResponse) -> Metrics {
    let (cpu, memory, pids) = (&stats.cpu, &stats.memory, &stats.pids);
    Metrics {
        pids: MessageField::some(PidsStat {
            current: pids.current,
            limit: pids.limit,
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
            usage: memory.usage,
            usage_limit: memory.usage_limit,
            swap_usage: memory.swap_usage,
            swap_limit: memory.swap_limit,
            ..named!(memory.stat, MemoryStat {
                anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp inactive_anon
                active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable pgfault pgmajfault
                workingset_nodereclaim pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree pglazyfreed
                thp_fault_alloc thp_collapse_alloc
            })
        }),
        memory_events: MessageField::some(named!(memory.events, MemoryEvents {
            low high max oom oom_kill oom_group_kill
        })),
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
