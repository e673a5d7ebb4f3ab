-- Counts reservations in Redis: the same as memory.py and meters.py, and held to them by one test for both.
--
-- KEYS[1] is the prefix of every key, with a hash tag: all of them are in one slot. ARGV[1] is a MessagePack array: now
-- (microseconds; 0 for the clock of this server, by which alone counters expire), holder, lease (microseconds) and an
-- array of operations. Each operation is an array, too, and has its result:
--
--   "reserve", name, takes    {granted, used, reset, wait, used, reset, wait, ...}
--   "settle", name, takes     {spent, spent, ...} of calendars, 0 of others; the takes hold the truth
--   "charge", name, takes     the same, and it counts where nothing is held by that name
--   "restore", "", takes      the same: at least so much was spent, of calendars
--   "renew"                   {}
--
-- A take: key, algorithm, capacity, scale, gain, amount. The answer is a MessagePack array of the results.

local prefix = KEYS[1]
local now, holder, lease, operations = unpack(cmsgpack.unpack(ARGV[1]))
local is_told_the_time = now ~= 0
if not is_told_the_time then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

local REMEMBERED = 3600000 -- milliseconds for which a holder that was given up may still settle, and a charge is known
local RETURNED_AT_ONCE = 200
local CONCURRENCY_WAIT = 1000000
local DAY = 86400000000
local NEVER = -1
local MOST = 9007199254740991
local floor, ceil, max = math.floor, math.ceil, math.max
local HOLDERS, HELD = prefix .. 'holders', prefix .. 'held:'
local RETURNED, CHARGED = prefix .. 'returned:', prefix .. 'charged:'

-- A counter's state: of a token bucket {parts, updated}, of a sliding window {slot, sum, slot, sum, ...}, of concurrency
-- {what is in flight}, of a calendar {spent, held, until when that counts}.

local token_bucket = {}

function token_bucket.used(state, take)
  local parts, updated = state[1] or 0, state[2] or 0
  if now > updated then
    parts, updated = max(0, parts - (now - updated) * take[5]), now
  end
  state[1], state[2] = parts, updated
  return ceil(parts / take[4])
end

function token_bucket.take(state, take, amount)
  token_bucket.used(state, take)
  state[1] = state[1] + amount * take[4]
  return 0
end

function token_bucket.settle(state, take, mark, truth)
  token_bucket.used(state, take)
  state[1] = max(0, state[1] + (truth - take[6]) * take[4])
end

function token_bucket.wait(state, take)
  return ceil((state[1] - (take[3] - take[6]) * take[4]) / take[5])
end

function token_bucket.reset(state, take)
  return ceil(state[1] / take[5])
end

local sliding_window = {}

local function gone(slot, take)
  return (slot + take[4] + 1) * take[5]
end

function sliding_window.used(state, take)
  local oldest = floor(now / take[5]) - take[4]
  while state[1] and state[1] < oldest do
    table.remove(state, 1)
    table.remove(state, 1)
  end
  local used = 0
  for i = 2, #state, 2 do
    used = used + state[i]
  end
  return used
end

function sliding_window.take(state, take, amount)
  local slot, last = floor(now / take[5]), #state - 1
  if last > 0 and state[last] >= slot then
    slot = state[last]
    state[last + 1] = state[last + 1] + amount
  else
    state[#state + 1] = slot
    state[#state + 1] = amount
  end
  return slot
end

function sliding_window.settle(state, take, mark, truth)
  sliding_window.used(state, take)
  if truth > take[6] then
    sliding_window.take(state, take, truth - take[6])
  elseif truth < take[6] then
    for i = #state - 1, 1, -2 do
      if state[i] == mark then
        state[i + 1] = state[i + 1] - (take[6] - truth)
        if state[i + 1] == 0 then
          table.remove(state, i)
          table.remove(state, i)
        end
        return
      end
    end
  end
end

function sliding_window.wait(state, take)
  local excess = sliding_window.used(state, take) + take[6] - take[3]
  for i = 1, #state, 2 do
    excess = excess - state[i + 1]
    if excess <= 0 then
      return gone(state[i], take) - now
    end
  end
  return 0
end

function sliding_window.reset(state, take)
  return state[1] and gone(state[#state - 1], take) - now or 0
end

local concurrency = {}

function concurrency.used(state)
  return state[1] or 0
end

function concurrency.take(state, take, amount)
  state[1] = (state[1] or 0) + amount
  return 0
end

function concurrency.settle(state, take)
  state[1] = (state[1] or 0) - take[6]
end

function concurrency.wait()
  return CONCURRENCY_WAIT
end

function concurrency.reset()
  return 0
end

function concurrency.charge() end

local calendar = {}

function calendar.used(state)
  if now >= (state[3] or 0) then
    state[1], state[2] = 0, 0
  end
  return state[1] + state[2]
end

local function keep(state, take)
  state[3] = max(take[5], now + DAY)
end

function calendar.take(state, take, amount)
  state[2] = state[2] + amount
  keep(state, take)
  return 0
end

function calendar.charge(state, take, amount)
  state[1] = state[1] + amount
  keep(state, take)
end

function calendar.settle(state, take, mark, truth)
  calendar.used(state)
  state[2] = max(0, state[2] - take[6])
  calendar.charge(state, take, truth)
end

function calendar.wait(state, take)
  return take[5] == MOST and NEVER or max(1, take[5] - now)
end

function calendar.reset(state, take)
  return take[5] == MOST and 0 or max(0, take[5] - now)
end

function calendar.lasts(state)
  return state[3] - now
end

local METERS = {
  token_bucket = token_bucket, sliding_window = sliding_window, concurrency = concurrency, calendar = calendar,
}

local function load_states(takes)
  local keys = {}
  for i, take in ipairs(takes) do
    keys[i] = prefix .. take[1]
  end
  local states = redis.call('MGET', unpack(keys))
  for i, packed in ipairs(states) do
    states[i] = packed and cmsgpack.unpack(packed) or {}
  end
  return states
end

local function save(take, state)
  local meter, key = METERS[take[2]], prefix .. take[1]
  if meter.used(state, take) <= 0 then
    redis.call('DEL', key)
  elseif meter == concurrency or is_told_the_time then
    redis.call('SET', key, cmsgpack.pack(state))
  else
    local lasts = (meter.lasts or meter.reset)(state, take)
    redis.call('SET', key, cmsgpack.pack(state), 'PX', string.format('%.0f', ceil(lasts / 1000)))
  end
end

-- Counts each take in its own way, and says what each calendar has spent then.
local function count(takes, change)
  local states, spent = load_states(takes), {}
  for i, take in ipairs(takes) do
    local meter, state = METERS[take[2]], states[i]
    meter.used(state, take)
    change(i, take, meter, state)
    spent[i] = meter == calendar and state[1] or 0
    save(take, state)
  end
  return spent
end

local function settle(takes, marks, truth)
  return count(takes, function(i, take, meter, state)
    meter.settle(state, take, marks[i], truth and truth[i][6] or 0)
  end)
end

local function charge(takes)
  return count(takes, function(_, take, meter, state)
    if take[6] > 0 then
      (meter.charge or meter.take)(state, take, take[6])
    end
  end)
end

local function restore(takes)
  return count(takes, function(_, take, _, state)
    calendar.charge(state, take, max(0, take[6] - state[1]))
  end)
end

-- Gives back what those holders reserved that were not heard of for a lease; a crowd of it over several calls.
local function expire()
  local budget = RETURNED_AT_ONCE
  while budget > 0 do
    local silent = redis.call('ZRANGEBYSCORE', HOLDERS, '-inf', string.format('%.0f', now), 'LIMIT', 0, 1)[1]
    if not silent then
      return
    end
    local held, returned = HELD .. silent, RETURNED .. silent
    local names = redis.call('HRANDFIELD', held, budget)
    for _, name in ipairs(names) do
      local takes, marks = unpack(cmsgpack.unpack(redis.call('HGET', held, name)))
      settle(takes, marks)
      redis.call('HDEL', held, name)
      redis.call('HSET', returned, name, '')
    end
    redis.call('PEXPIRE', returned, REMEMBERED)
    if #names < budget then
      redis.call('ZREM', HOLDERS, silent)
    end
    budget = budget - #names - 1
  end
end

local function renew()
  redis.call('ZADD', HOLDERS, string.format('%.0f', now + lease), holder)
end

local function reserve(name, takes)
  local states, result, uses = load_states(takes), {1}, {}
  for i, take in ipairs(takes) do
    uses[i] = METERS[take[2]].used(states[i], take)
    if uses[i] + take[6] > take[3] then
      result[1] = 0
    end
  end
  if redis.call('EXISTS', CHARGED .. name) == 1 then
    result[1] = 0 -- it came too late: the caller has stopped waiting, and said what was used
  end
  local marks = {}
  for i, take in ipairs(takes) do
    local meter, wait = METERS[take[2]], 0
    if result[1] == 1 then
      marks[i] = meter.take(states[i], take, take[6])
      uses[i] = uses[i] + take[6]
      save(take, states[i])
    elseif take[6] > take[3] then
      wait = NEVER
    elseif uses[i] + take[6] > take[3] then
      wait = meter.wait(states[i], take)
    end
    result[#result + 1] = uses[i]
    result[#result + 1] = meter.reset(states[i], take)
    result[#result + 1] = wait
  end
  if result[1] == 1 then
    redis.call('HSET', HELD .. holder, name, cmsgpack.pack({takes, marks}))
    renew()
  end
  return result
end

-- Nobody knows whether the reservation of a charge was ever made, nor, when it comes again, whether it came before.
local function settle_held(name, truth, is_charge)
  if is_charge and not redis.call('SET', CHARGED .. name, '', 'NX', 'PX', REMEMBERED) then
    return {}
  end
  local held = redis.call('HGET', HELD .. holder, name)
  if held then
    redis.call('HDEL', HELD .. holder, name)
    local takes, marks = unpack(cmsgpack.unpack(held))
    return settle(takes, marks, truth)
  elseif redis.call('HDEL', RETURNED .. holder, name) == 1 or is_charge then
    return charge(truth)
  end
  return {}
end

expire()
local results = {}
for i, operation in ipairs(operations) do
  local kind, name, takes = unpack(operation)
  results[i] = {}
  if kind == 'reserve' then
    results[i] = reserve(name, takes)
  elseif kind == 'renew' then
    renew()
  elseif kind == 'restore' then
    results[i] = restore(takes)
  else
    results[i] = settle_held(name, takes, kind == 'charge')
  end
end
return cmsgpack.pack(results)
