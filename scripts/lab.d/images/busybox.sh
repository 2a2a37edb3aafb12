# shellcheck shell=bash disable=SC2034 # read by image.sh
# flocker-test/busybox:1 - a shell and small tools, 2 MB.
tag=flocker-test/busybox:1
packages=busybox-static
changes=('CMD ["sh"]' 'ENV PATH=/bin')

fill() { :; }
