//! Traffic of a pod: its throughput both ways, and how many small requests it answers. The other side is the node,
//! over the bridge on which both pods are.

use bulkhead_tests::bed::Test;
use bulkhead_tests::cri::pod::Pod;
use bulkhead_tests::failure::{Failure, Outcome};
use bulkhead_tests::image;
use bulkhead_tests::measure::median;
use bulkhead_tests::network::Network;
use serde_json::Value;

use super::Results;

/// How often each is measured, and for how many seconds.
const ROUNDS: usize = 5;
const SECONDS: u32 = 3;

/// The runtime handlers; the last one is the peer.
const HANDLERS: [&str; 2] = ["bulkhead", "runc"];

/// What a pod serves.
const SERVERS: &str = "mkdir /www; echo hello > /www/small; webfsd -p 8000 -r /www; iperf3 -s -D; echo ready; \
                       exec sleep 100000";

/// Measures all of it.
pub fn measure(t: &Test<'_>, results: &mut Results) -> Outcome {
    let node = t.bed.pods()?;
    t.bed.import_programs(&node.containerd)?;
    let network = node.containerd.network();
    let network = network.ok_or_else(|| Failure::new("the node has no network of its own"))?;
    let pods = HANDLERS.map(|handler| t.pod().handler(handler).run());
    let [ours, peer] = pods;
    let pods = [ours?, peer?];
    let mut addresses = Vec::new();
    for pod in &pods {
        serve(pod)?;
        addresses.push(pod.address()?);
    }
    for (name, unit, work) in ROWS {
        let mut values = [Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for (values, address) in values.iter_mut().zip(&addresses) {
                let value = work(network, address)?;
                if round > 0 {
                    values.push(value);
                }
            }
        }
        let [ours, peer] = values.map(median);
        results.pair(name, unit, ours, peer);
    }
    pods.iter().try_for_each(|pod| Ok(pod.remove()?))
}

/// A row: its name, its unit, and how the number is come by.
type Row = (&'static str, &'static str, fn(&Network, &str) -> Outcome<f64>);

const ROWS: [Row; 3] = [
    ("to a pod, one TCP connection", "Mbit/s", |network, address| iperf(network, address, "")),
    ("from a pod, one TCP connection", "Mbit/s", |network, address| iperf(network, address, "-R")),
    ("small HTTP requests to a pod, 8 connections", "1/s", requests),
];

fn serve(pod: &Pod<'_>) -> Outcome {
    let server = pod.container("server").script(SERVERS).with(|config| {
        if let Some(image) = &mut config.image {
            image::PROGRAMS.clone_into(&mut image.image);
        }
    });
    server.start()?.await_log("ready")
}

fn iperf(network: &Network, address: &str, direction: &str) -> Outcome<f64> {
    let text = network.sh(&format!("iperf3 -c {address} -t {SECONDS} -J {direction}"))?;
    let seen: Value = serde_json::from_str(&text)?;
    let rate = seen["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.ok_or_else(|| Failure::new(format!("iperf3 printed {text}")))? / 1e6)
}

fn requests(network: &Network, address: &str) -> Outcome<f64> {
    let text = network.sh(&format!("wrk -t 1 -c 8 -d {SECONDS}s http://{address}:8000/small"))?;
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    Ok(rate.ok_or_else(|| Failure::new(format!("wrk printed {text}")))?.trim().parse()?)
}
