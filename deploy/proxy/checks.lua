-- Checks a whole inference request before Triton parses it: only raw tensors of sane shapes for known models, without
-- parameters other than priority and timeout. What is not known here is refused. The fetches give the problem, or "none".

local LARGEST = 17000000 -- bytes of a message
local MODELS = { superres = true, superres_stream = true, superres_onnx = true }
local MOST_FIELDS = 64 -- of one message or object, so that checking takes no time
local LONGEST_NAME = 256
local MOST_DIMENSIONS, LARGEST_DIMENSION = 5, 9999
local SHAPES = "shapes must have up to " .. MOST_DIMENSIONS .. " numbers of 1 to " .. LARGEST_DIMENSION
local ONLY = "only names, types, shapes, raw tensors, priority and timeout are allowed, no other parameters, values in messages or other fields"

local function refuse(problem)
    error({ problem = problem })
end

-- gRPC: a byte that says whether the message is compressed, its length, and the message in Protocol Buffers.

-- Returns the number at a position and the position after it.
local function varint(data, at, last)
    local value, shift = 0, 0
    while at <= last and shift < 63 do
        local byte = data:byte(at)
        value = value | ((byte & 127) << shift)
        at, shift = at + 1, shift + 7
        if byte < 128 then
            return value, at
        end
    end
    refuse("the message is broken")
end

-- Calls the function in `fields` for every field between two positions, with where its content begins and ends.
local function walk(data, at, last, fields)
    local count = 0
    while at <= last do
        local tag, first, size
        count = count + 1
        if count > MOST_FIELDS then
            refuse("the message has too many fields")
        end
        tag, at = varint(data, at, last)
        local field = fields[tag]
        if not field then
            refuse(ONLY)
        end
        if tag & 7 == 0 then -- a number
            first = at
            _, at = varint(data, at, last)
        else -- bytes after their length
            size, first = varint(data, at, last)
            if size > last - first + 1 then
                refuse("the message is broken")
            end
            at = first + size
        end
        field(data, first, at - 1)
    end
end

local function key(number, is_number)
    return number << 3 | (is_number and 0 or 2)
end

local function name(_, first, last)
    if last - first + 1 > LONGEST_NAME then
        refuse("names must have up to " .. LONGEST_NAME .. " bytes")
    end
end

local function input(data, first, last)
    local dimensions = 0
    local function shape(_, at, stop)
        while at <= stop do
            local side
            side, at = varint(data, at, stop)
            dimensions = dimensions + 1
            if side < 1 or side > LARGEST_DIMENSION or dimensions > MOST_DIMENSIONS then
                refuse(SHAPES)
            end
        end
    end
    walk(data, first, last, { [key(1)] = name, [key(2)] = name, [key(3)] = shape, [key(3, true)] = shape })
end

local function output(data, first, last)
    walk(data, first, last, { [key(1)] = name })
end

-- Only these: others, such as a classification of strings, end Triton.
local PARAMETERS = { priority = true, timeout = true }
local function parameter(data, first, last)
    walk(data, first, last, {
        [key(1)] = function(_, at, stop)
            if not PARAMETERS[data:sub(at, stop)] then
                refuse(ONLY)
            end
        end,
        [key(2)] = function(_, at, stop)
            walk(data, at, stop, { [key(2, true)] = function() end, [key(5, true)] = function() end })
        end,
    })
end

local function model(data, first, last)
    if not MODELS[data:sub(first, last)] then
        refuse("only models superres, superres_stream and superres_onnx are allowed")
    end
end

local function check_grpc(data)
    if #data < 5 or data:byte(1) ~= 0 then
        refuse("the message is broken or compressed")
    end
    local size = string.unpack(">I4", data, 2)
    if size > LARGEST then
        refuse("the message must have up to " .. LARGEST .. " bytes")
    end
    if size ~= #data - 5 then
        refuse("the message is broken")
    end
    walk(data, 6, #data, {
        [key(1)] = model, -- model_name
        [key(2)] = name, -- model_version
        [key(3)] = name, -- id
        [key(4)] = parameter,
        [key(5)] = input,
        [key(6)] = output,
        [key(7)] = function() end, -- raw_input_contents
    })
end

-- HTTP: a JSON header, whose size is stated, and the tensors.

local function check_http(data, size)
    if not size or size > #data then
        refuse("the request is shorter than its JSON header")
    end
    local header, at = data:sub(1, size), 1

    -- Takes what comes next after any white space, and returns the pattern's capture, or nothing if it is something else.
    local function take(pattern)
        local _, last, found = header:find("^[ \t\r\n]*(" .. pattern .. ")", at)
        if last then
            at = last + 1
        end
        return found
    end

    local function need(pattern, problem)
        return take(pattern) or refuse(problem or "the JSON header is broken")
    end

    -- Takes a list between two brackets; `item` takes one of its items.
    local function list(opening, closing, item)
        local count = 0
        need(opening)
        if take(closing) then
            return
        end
        repeat
            count = count + 1
            if count > MOST_FIELDS then
                refuse("the JSON header has too many fields")
            end
            item()
        until not take(",")
        need(closing)
    end

    local function object(members)
        return function()
            list("{", "}", function()
                local member = members[need('"[%w_]+"'):sub(2, -2)] or refuse(ONLY)
                need(":")
                member()
            end)
        end
    end

    local function array(item)
        return function()
            list("%[", "%]", item)
        end
    end

    local function text() -- printable ASCII without escapes
        need('"[^%c"\\\128-\255]*"', "names must be printable ASCII without escapes")
    end

    local function shape()
        local dimensions = 0
        list("%[", "%]", function()
            local side = need("%-?%d+", SHAPES)
            dimensions = dimensions + 1
            if not side:find("^[1-9]%d?%d?%d?$") or dimensions > MOST_DIMENSIONS then
                refuse(SHAPES)
            end
        end)
    end

    local function bytes()
        if #need("%d+") > #tostring(LARGEST) then
            refuse("tensors must have up to " .. LARGEST .. " bytes")
        end
    end

    local function choice()
        return take("true") or need("false")
    end

    local function level()
        if #need("%d+") > 1 then
            refuse("the priority must have one digit")
        end
    end

    local function microseconds()
        if #need("%d+") > 15 then
            refuse("the timeout must have up to 15 digits")
        end
    end

    local tensor = { name = text, datatype = text, shape = shape, parameters = object({ binary_data_size = bytes }) }
    local wanted = { name = text, parameters = object({ binary_data = choice }) }
    object({
        id = text,
        inputs = array(object(tensor)),
        outputs = array(object(wanted)),
        parameters = object({ binary_data_output = choice, priority = level, timeout = microseconds }),
    })()
    if take("[^ \t\r\n]") then
        refuse("the JSON header is broken")
    end
end

local function problem_of(check, ...)
    local good, problem = pcall(check, ...)
    if good then
        return "none"
    end
    return type(problem) == "table" and problem.problem or "the request cannot be checked"
end

core.register_fetches("grpc_problem", function(txn)
    return problem_of(check_grpc, txn.f:req_body() or "")
end)

core.register_fetches("http_problem", function(txn)
    local size = txn.f:req_hdr("inference-header-content-length")
    return problem_of(check_http, txn.f:req_body() or "", tonumber(size))
end)
