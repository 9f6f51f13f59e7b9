//! The guest's network follows the pod's: the kernel tells of each change (rtnetlink(7), multicast groups).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bulkhead_protocols::agent_ttrpc::AgentClient;
use bulkhead_protocols::{agent, chain};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use slog::{Logger, warn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use super::{Network, NetworkError, Seen};
use crate::guest::Guest;

/// `RTNLGRP_...` of linux/rtnetlink.h: interfaces, neighbours, and of both families addresses, routes and rules.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// How much is taken of a notice. What it says does not matter: the namespace is looked at anew.
const NOTICE: usize = 64;

/// How long to wait before what has failed is tried again, at first and at most.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A network that can tell of its changes.
pub struct Following {
    network: Arc<Mutex<Network>>,
    notices: AsyncFd<Socket>,
    /// Whether the guest has not been told of all that there were notices of.
    behind: AtomicBool,
    log: Logger,
}

impl Following {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`]
    pub fn new(network: Network, log: &Logger) -> Result<Self, NetworkError> {
        let notices = notices_of(&network)?;
        Ok(Self {
            network: Arc::new(Mutex::new(network)),
            notices,
            behind: AtomicBool::new(false),
            log: log.clone(),
        })
    }

    /// The same devices of a VM in another namespace, the one at this path. They carry nothing yet.
    ///
    /// # Errors
    /// [`NetworkError`]; neither can be used then.
    pub async fn moved(&self, path: PathBuf) -> Result<Self, NetworkError> {
        let mut network = self.network.clone().lock_owned().await;
        let entered = spawn_blocking(move || network.enter(&path).map(|()| network)).await;
        let network = entered.map_err(|_| NetworkError::Interrupted)??;
        Ok(Self {
            network: self.network.clone(),
            notices: notices_of(&network)?,
            behind: AtomicBool::new(false),
            log: self.log.clone(),
        })
    }

    /// All that a new guest has to be told. It has carried that out when it is set up.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub async fn all(&self) -> Result<agent::Network, NetworkError> {
        let (mut network, seen) = self.look(self.network.clone().lock_owned().await).await?;
        network.told = seen.told;
        Ok(seen.change)
    }

    /// Follows as long as the returned task is not aborted.
    pub fn start(self: &Arc<Self>, guest: &Guest) -> JoinHandle<()> {
        let (this, guest) = (self.clone(), guest.clone());
        tokio::spawn(async move {
            while let Ok(mut ready) = this.notices.readable().await {
                ready.clear_ready();
                let mut pause = PAUSE;
                while !this.settle(&guest).await {
                    sleep(pause).await;
                    pause = LONGEST_PAUSE.min(2 * pause);
                }
            }
        })
    }

    /// Has the guest carry out what has changed in the namespace by now; false if that has failed.
    pub async fn settle(&self, guest: &Guest) -> bool {
        let network = self.network.clone().lock_owned().await;
        if any(self.notices.get_ref()) {
            self.behind.store(true, Ordering::Relaxed);
        }
        if !self.behind.load(Ordering::Relaxed) {
            return true;
        }
        let told = match self.look(network).await {
            Ok((mut network, seen)) if seen.told != network.told => {
                let change = &seen.change;
                let call = async |agent: &AgentClient, context| {
                    agent.update_network(context, change).await
                };
                let told = guest.call(call).await.map_err(|error| error.to_string());
                match &told {
                    Ok(_) => network.told = seen.told,
                    Err(_) => network.told.doubtful = seen.told.messages,
                }
                told.map(drop)
            }
            Ok(_) => Ok(()),
            Err(error) => Err(chain(&error)),
        };
        if let Err(error) = &told {
            warn!(self.log, "the guest's network does not follow: {error}");
        }
        self.behind.store(told.is_err(), Ordering::Relaxed);
        told.is_ok()
    }

    /// In a thread of its own: the kernel answers when nobody else on the host changes a network, which may take it.
    async fn look(
        &self,
        mut network: OwnedMutexGuard<Network>,
    ) -> Result<(OwnedMutexGuard<Network>, Seen), NetworkError> {
        let looked = spawn_blocking(move || network.look().map(|seen| (network, seen))).await;
        let (network, mut seen) = looked.map_err(|_| NetworkError::Interrupted)??;
        for error in seen.refused.drain(..) {
            warn!(self.log, "{}", chain(&error));
        }
        Ok((network, seen))
    }
}

/// Notices of what changes in this network's namespace from now on.
fn notices_of(network: &Network) -> Result<AsyncFd<Socket>, NetworkError> {
    let listen = || {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        GROUPS.into_iter().try_for_each(|group| socket.add_membership(group))?;
        Ok(socket)
    };
    let opened = network.namespace.inside(listen).and_then(|socket| {
        // SAFETY: the socket has one descriptor, of its own, as long as it lives.
        let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(watched?)
    });
    opened.map_err(NetworkError::kernel("notices of its changes"))
}

/// Whether there were some; they are taken.
fn any(notices: &Socket) -> bool {
    let mut any = false;
    loop {
        let mut notice = Vec::with_capacity(NOTICE);
        match notices.recv(&mut notice, libc::MSG_TRUNC) {
            Ok(_) => any = true,
            // There were more than fit.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
            Err(_) => return any,
        }
    }
}
