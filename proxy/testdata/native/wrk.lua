-- Each request has a number of its own, and each answer is written down. When a file is
-- there nothing more is asked, and each connection writes down that it has stopped, so that
-- nothing is outstanding when wrk is ended.
-- Arguments: where to write answers, and the file.

local threads = 0

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

function init(args)
  answers = io.open(args[1], "a")
  stop = args[2]
  asked = 0
end

function delay()
  local f = io.open(stop)
  if f == nil then
    return 0
  end
  f:close()
  answers:write("stopped\n")
  answers:flush()
  return 3600 * 1000
end

function request()
  asked = asked + 1
  return wrk.format("POST", wrk.path .. "/" .. id .. "-" .. asked, nil, "something to do")
end

function response(status, headers, body)
  answers:write(status, " ", body)
  answers:flush()
end
