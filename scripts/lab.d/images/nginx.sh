# shellcheck shell=bash disable=SC2034 # read by image.sh
# flocker-test/nginx:1 - serves /usr/share/nginx/html on port 80.
tag=flocker-test/nginx:1
packages=busybox-static,nginx-light
changes=('CMD ["nginx", "-g", "daemon off;"]' 'ENV PATH=/usr/sbin:/bin' 'EXPOSE 80')
stop_signal=SIGQUIT
keep='usr/sbin/nginx'

fill() {
	mkdir -p "$1"/etc/nginx "$1"/var/{log,lib}/nginx "$1"/run "$1"/usr/share/nginx/html
	echo 'nginx of the flocker lab' >"$1/usr/share/nginx/html/index.html"
	cat >"$1/etc/nginx/nginx.conf" <<'CONF'
worker_processes 1;
error_log stderr;
pid /run/nginx.pid;
events {}
http {
	access_log off;
	default_type text/plain;
	server {
		listen 80;
		root /usr/share/nginx/html;
	}
}
CONF
}
