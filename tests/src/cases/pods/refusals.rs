//! What can't be had: the call says so in words for the cluster's operator, and nothing is left over.

use std::fs;

use k8s_cri::v1::{ContainerState, ImageSpec, NamespaceMode};
use nix::mount::{MntFlags, umount2};
use tonic::Code;

use crate::bed::Test;
use crate::cri::client::refused;
use crate::cri::stream::Port;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::leftovers;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("pods.leaves_nothing", "a pod that is refused leaves nothing", leaves_nothing),
    Case::any(
        "pods.unknown_handler",
        "a pod of an unknown RuntimeClass is refused",
        unknown_handler,
    ),
    Case::any(
        "pods.pod_twice",
        "a pod is refused while another has its name; that one goes on",
        pod_twice,
    ),
    Case::any(
        "pods.container_twice",
        "a container is refused while another has its name",
        container_twice,
    ),
    Case::any(
        "pods.no_entrypoint",
        "an image that says not what to run, for a pod that doesn't either",
        no_entrypoint,
    ),
    Case::any("pods.no_image", "a container of an image that is not there", no_image),
    Case::any("pods.no_program", "a container whose program is not in its image", no_program),
    Case::any("pods.no_user", "a container of a user whom its image does not know", no_user),
    Case::any("pods.volume_gone", "a volume that goes between create and start", volume_gone),
    Case::any("pods.volume_impossible", "a volume below a file", volume_impossible),
    Case::any("pods.stopped_pod", "no container starts in a stopped pod", stopped_pod),
    Case::any(
        "pods.no_network",
        "a pod whose network namespace is gone is removed all the same",
        no_network,
    ),
    Case::any(
        "pods.no_target",
        "kubectl debug of a container that is not there, or of another pod",
        no_target,
    ),
];

/// A name that is in use: 1.6 has no code for it.
const TAKEN: [Code; 2] = [Code::Unknown, Code::FailedPrecondition];
/// What is not there.
const ABSENT: [Code; 2] = [Code::Unknown, Code::NotFound];
/// What a runtime refuses: runc has no codes.
const RUNTIME: [Code; 4] =
    [Code::Unknown, Code::InvalidArgument, Code::NotFound, Code::FailedPrecondition];

fn leaves_nothing(t: &Test<'_>) -> Outcome {
    t.on_own_node(|node| {
        let sysctl = ("kernel.no_such_thing".to_owned(), "1".to_owned());
        t.pod_on(node)
            .linux(|linux| linux.sysctls = [sysctl].into())
            .refused(&RUNTIME, &["kernel.no_such_thing", "kernel/no_such_thing"])?;
        // The rest is looked for when the node is closed.
        ensure!(node.pod_ids()?.is_empty(), "pods: {:?}", node.pod_ids()?);
        Ok(())
    })
}

fn unknown_handler(t: &Test<'_>) -> Outcome {
    t.pod()
        .handler("nobody")
        .refused(&[Code::Unknown], &["no runtime for \"nobody\" is configured"])
}

fn pod_twice(t: &Test<'_>) -> Outcome {
    let plan = t.pod();
    let pod = plan.run()?;
    let app = pod.container("app").start()?;
    plan.refused(&TAKEN, &["is reserved for"])?;
    app.prints("echo here", "here\n")?;
    pod.remove()?;
    plan.run().map(drop)
}

fn container_twice(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let plan = pod.container("app");
    let app = plan.start()?;
    plan.refused(&TAKEN, &["is reserved for"])?;
    app.prints("echo here", "here\n")
}

fn no_entrypoint(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let bare = Some(ImageSpec { image: image::BARE.to_owned(), ..ImageSpec::default() });
    let plan = pod.container("app").command(&[]).with(|config| config.image = bare);
    plan.refused(&[Code::Unknown], &["no command specified"])?;
    // With a program it is as good as any.
    plan.command(&["/bin/true"]).run()?.exits(0).map(drop)
}

fn no_image(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let none =
        ImageSpec { image: "docker.io/bulkhead/none:test".to_owned(), ..ImageSpec::default() };
    let plan = pod.container("app").with(|config| config.image = Some(none));
    plan.refused(&[Code::NotFound], &["none:test"])
}

fn no_program(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app").command(&["no-such-program"]).create()?;
    let text = "exec: \"no-such-program\": executable file not found in $PATH";
    refused(app.start(), &RUNTIME, &[text])?;
    // What `kubectl describe` shows.
    let status = app.status()?;
    ensure!(status.state() == ContainerState::ContainerExited, "{status:?}");
    ensure!(status.reason == "StartError" && status.message.contains(text), "{status:?}");
    ensure!(status.exit_code == 128, "{status:?}");
    pod.container("next").start()?.prints("echo here", "here\n")
}

fn no_user(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app");
    let app = app.security(|security| "nobody-here".clone_into(&mut security.run_as_username));
    app.refused(&[Code::Unknown], &["no users found", "nobody-here"])
}

fn volume_gone(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let dir = t.directory()?.join("volume");
    fs::create_dir(&dir)?;
    let app = pod.container("app").mount(&dir, "/volume").create()?;
    fs::remove_dir(&dir)?;
    let status = refused(app.start(), &RUNTIME, &["no such file or directory"])?;
    let path = dir.to_string_lossy();
    ensure!(status.message().contains(&*path), "it doesn't name {path}: {}", status.message());
    Ok(())
}

fn volume_impossible(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let file = t.directory()?.join("file");
    fs::write(&file, "")?;
    let app = pod.container("app").mount(&file.join("volume"), "/volume");
    app.refused(&[Code::Unknown], &["not a directory"])
}

fn stopped_pod(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let early = pod.container("early").create()?;
    pod.stop()?;
    let texts = ["is not running", "not found", "is stopped", "has ended"];
    let early = early.start();
    ensure!(early.is_err(), "a container of before was started");
    let late = pod.container("late").attempt().and_then(|late| late.start());
    let Err(status) = late else {
        return Err(Failure::new("a container was started in a stopped pod"));
    };
    ensure!(texts.iter().any(|text| status.message().contains(text)), "{status:?}");
    Ok(())
}

fn no_network(t: &Test<'_>) -> Outcome {
    t.on_own_node(|node| {
        let pod = t.pod_on(node).run()?;
        let app = pod.container("app").start()?;
        for namespace in leftovers::entries(&node.namespaces()) {
            umount2(&namespace, MntFlags::MNT_DETACH)?;
            fs::remove_file(&namespace)?;
        }
        let forward = Port::forward(&pod, 80).and_then(Port::refusal);
        let said = forward.unwrap_or_else(|failure| failure.to_string());
        ensure!(said.contains("is closed"), "port-forward says {said:?}");
        // What runs goes on.
        app.prints("echo here", "here\n")?;
        Ok(pod.remove()?)
    })
}

fn no_target(t: &Test<'_>) -> Outcome {
    let (pod, other) = (t.pod().run()?, t.pod().run()?);
    let stranger = other.container("app").start()?;
    for (name, target) in [("nobody", "0123456789abcdef"), ("stranger", stranger.id.as_str())] {
        let debugger = pod.container(name).security(|security| {
            let all = security.namespace_options.get_or_insert_default();
            all.pid = NamespaceMode::Target.into();
            target.clone_into(&mut all.target_id);
        });
        debugger.refused(&ABSENT, &["invalid target container"])?;
    }
    Ok(())
}
