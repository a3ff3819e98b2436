"""What Redis does for the limits: one script, so that nothing comes between looking and counting.

Every account is a hash with these fields, where M is a measure's number:

    mM:SECOND   counted in that second, of what is limited by the minute
    hM:ROUTER   held by that router: requests in flight, and what it has on lease
    dM:DAY      used on that day by requests that are over
    nM:MONTH    the same of a month

What a router holds counts while the router is heard of, so that nothing stays behind one that was
killed. A call applies what its router settled, then admits the requests that wait, then leases.
"""

from typing import Final

LIMITS_SCRIPT: Final = """
local call = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = tonumber(clock[1])
local ms = now * 1000 + math.floor(tonumber(clock[2]) / 1000)
local day, month = call.day, call.month

-- Who is alive, this router included.
local alive, routers = {}, 0
local book = redis.call('HGETALL', KEYS[1])
local sequence = 0
for i = 1, #book, 2 do
  local name = string.sub(book[i], 3)
  if string.sub(book[i], 1, 1) == 'r' then
    if name == call.router or tonumber(book[i + 1]) > ms then
      alive[name] = true
    else
      redis.call('HDEL', KEYS[1], book[i], 'q:' .. name)
    end
  elseif name == call.router then
    sequence = tonumber(book[i + 1])
  end
end
alive[call.router] = true
for _ in pairs(alive) do routers = routers + 1 end
redis.call('HSET', KEYS[1], 'r:' .. call.router, ms + call.lease, 'q:' .. call.router, call.seq)
redis.call('PEXPIRE', KEYS[1], 86400000)
local fresh = call.seq > sequence

local accounts = {}

local function count(account, measure, second, amount)
  if amount == 0 then return end
  account.slots[measure][second] = (account.slots[measure][second] or 0) + amount
  account.minute[measure] = account.minute[measure] + amount
  redis.call('HINCRBY', account.key, 'm' .. measure .. ':' .. second, amount)
end

local function spend(account, letter, sums, measure, period, amount)
  sums[measure] = sums[measure] + amount
  redis.call('HINCRBY', account.key, letter .. measure .. ':' .. period, amount)
end

for i, given in ipairs(call.accounts) do
  local account = {key = KEYS[i + 1], limits = given.l, slots = {}, minute = {}, held = {},
                   own = {}, days = {}, months = {}, by_minute = {}, by_day = {}, by_month = {},
                   holds = {}, was = {}}
  for measure = 0, 5 do
    account.slots[measure] = {}
    account.minute[measure], account.held[measure], account.own[measure] = 0, 0, 0
    account.days[measure], account.months[measure], account.was[measure] = 0, 0, 0
  end
  for _, limit in ipairs(given.l) do
    if limit[2] == 1 then account.by_minute[limit[1]] = true end
    if limit[2] == 2 then account.by_day[limit[1]] = true end
    if limit[2] == 3 then account.by_month[limit[1]] = true end
    if limit[2] ~= 1 then account.holds[limit[1]] = true end
  end
  local raw = redis.call('HGETALL', account.key)
  for j = 1, #raw, 2 do
    local field, value = raw[j], tonumber(raw[j + 1])
    local letter, measure = string.sub(field, 1, 1), tonumber(string.sub(field, 2, 2))
    local rest = string.sub(field, 4)
    if letter == 'm' then
      local second = tonumber(rest)
      if second <= now - 60 then
        redis.call('HDEL', account.key, field)
      else
        account.slots[measure][second] = value
        account.minute[measure] = account.minute[measure] + value
      end
    elseif letter == 'h' then
      if rest == call.router then
        account.was[measure] = value
      elseif alive[rest] then
        account.held[measure] = account.held[measure] + value
      else
        redis.call('HDEL', account.key, field)
      end
    elseif letter == 'd' then
      if tonumber(rest) == day then account.days[measure] = value
      else redis.call('HDEL', account.key, field) end
    elseif letter == 'n' then
      if tonumber(rest) == month then account.months[measure] = value
      else redis.call('HDEL', account.key, field) end
    end
  end
  for measure = 0, 5 do
    if account.holds[measure] then account.own[measure] = given.h[measure + 1] end
    account.held[measure] = account.held[measure] + account.own[measure]
  end
  if fresh then
    for _, change in ipairs(given.c) do
      local measure, second, amount = change[1], change[2], change[3]
      if second == 0 then second = now + 1 end
      -- What was reserved over a minute ago is gone; what came on top of it counts now.
      if second <= now - 60 and amount > 0 then second = now end
      if second > now - 60 then count(account, measure, second, amount) end
    end
    for measure = 0, 5 do
      local used = given.u[measure + 1]
      if used ~= 0 then
        if account.by_day[measure] then spend(account, 'd', account.days, measure, day, used) end
        if account.by_month[measure] then
          spend(account, 'n', account.months, measure, month, used)
        end
      end
    end
  end
  accounts[i] = account
end

local function used(account, limit)
  local measure, period = limit[1], limit[2]
  if period == 1 then return account.minute[measure] end
  if period == 0 then return account.held[measure] end
  if period == 2 then return account.days[measure] + account.held[measure] end
  return account.months[measure] + account.held[measure]
end

-- Milliseconds until at most `room` of a minute is left.
local function wait(account, measure, room)
  local total = account.minute[measure]
  for second = now - 59, now + 1 do
    if total <= room then return math.max((second + 59) * 1000 - ms, 0) end
    total = total - (account.slots[measure][second] or 0)
  end
  return (now + 61) * 1000 - ms
end

local function take(account, measure, second, amount)
  if account.by_minute[measure] then count(account, measure, second, amount) end
  if account.holds[measure] then
    account.own[measure] = account.own[measure] + amount
    account.held[measure] = account.held[measure] + amount
  end
end

local results = {}
for r, request in ipairs(call.requests) do
  local over, refused = {}, false
  for _, index in ipairs(request.a) do
    local account = accounts[index + 1]
    for l, limit in ipairs(account.limits) do
      local need = math.min(request.n[limit[1] + 1], limit[3])
      local amount = used(account, limit)
      if amount + need > limit[3] then
        local left = -1
        if limit[2] == 1 then left = wait(account, limit[1], limit[3] - need) end
        over[#over + 1] = {index, l - 1, amount, left}
        if limit[4] == 0 then refused = true end
      end
    end
  end
  if not refused then
    for _, index in ipairs(request.a) do
      for measure = 0, 5 do take(accounts[index + 1], measure, now, request.n[measure + 1]) end
    end
  end
  results[r] = {refused and 1 or 0, over}
end

local told = {}
for i, account in ipairs(accounts) do
  local leased = {}
  for measure = 0, 5 do
    local extra = call.accounts[i].w[measure + 1]
    if extra > 0 then
      for _, limit in ipairs(account.limits) do
        if limit[1] == measure and limit[4] == 0 then
          local free = limit[3] - used(account, limit)
          if free * 5 < limit[3] then extra = 0 end
          extra = math.min(extra, math.floor(free / (2 * routers)))
        end
      end
      -- A few are not worth a lease: another router might be refused for them.
      if extra >= 8 then take(account, measure, now + 1, extra) else extra = 0 end
    end
    leased[measure + 1] = extra
    if account.own[measure] ~= account.was[measure] then
      local field = 'h' .. measure .. ':' .. call.router
      if account.own[measure] == 0 then redis.call('HDEL', account.key, field)
      else redis.call('HSET', account.key, field, account.own[measure]) end
    end
  end
  redis.call('EXPIRE', account.key, next(account.by_month) and 3024000
             or next(account.by_day) and 180000 or 600)
  local stand = {}
  for l, limit in ipairs(account.limits) do stand[l] = used(account, limit) end
  told[i] = {stand, leased}
end

return {now, routers, results, told}
"""
