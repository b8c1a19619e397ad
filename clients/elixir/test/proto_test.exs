defmodule Crucible.ProtoTest do
  use ExUnit.Case, async: true
  alias Crucible.{Constraints, Proto}

  @adam "crucible.port.training.v1.AdamParams"
  @tensor "crucible.type.v1.Tensor"
  @params "crucible.port.sampling.v1.SamplingParams"
  @loss "crucible.port.training.v1.LossFunction"

  test "the bytes are protobuf's" do
    # From the encoding guide: field 1 as varint 150 is 08 96 01.
    assert Proto.encode("google.protobuf.Duration", %{seconds: 150}) == <<0x08, 0x96, 0x01>>

    assert Proto.encode("google.protobuf.Duration", %{seconds: -1}) ==
             <<0x08>> <> :binary.copy(<<0xFF>>, 9) <> <<1>>

    assert Proto.encode(@adam, %{learning_rate: 1.0}) == <<0x09, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F>>

    assert Proto.encode(@tensor, %{dtype: :D_TYPE_INT32, shape: [2, 300], storage: {:dense, "ab"}}) ==
             <<0x08, 5, 0x12, 3, 2, 0xAC, 0x02, 0x1A, 2, "ab">>

    assert Proto.encode(@loss, %{name: "x", parameters: %{"b" => 0.0, "a" => 1.0}}) ==
             <<0x0A, 1, "x", 0x12, 12, 0x0A, 1, "a", 0x11, 1.0::float-little-64, 0x12, 12, 0x0A,
               1, "b", 0x11, 0::64>>
  end

  test "absent and zero differ where the proto says so" do
    assert {:ok, %{beta1: nil, eps: 0.0, learning_rate: 0.0}} =
             Proto.decode(@adam, <<0x21, 0::64>>)

    assert Proto.encode(@adam, %{learning_rate: 0.0, eps: 0.0}) == <<0x21, 0::64>>
    # Minus zero is not the default.
    assert <<0x09, _::binary>> = Proto.encode(@adam, %{learning_rate: -0.0})
  end

  test "repeated numbers are read packed and unpacked, and in pieces" do
    assert {:ok, %{stop_tokens: [1, 2, 3]}} =
             Proto.decode(@params, <<0x30, 1, 0x32, 1, 2, 0x30, 3>>)
  end

  test "the last of a oneof counts, and a message that comes twice is merged" do
    assert {:ok, %{storage: {:dense, "b"}}} =
             Proto.decode(@tensor, <<0x1A, 1, "a", 0x1A, 1, "b">>)

    wait = fn bytes -> <<0x1A, byte_size(bytes), bytes::binary>> end
    request = wait.(<<0x08, 1>>) <> wait.(<<0x10, 2>>)

    assert {:ok, %{wait: %{seconds: 1, nanos: 2}}} =
             Proto.decode("crucible.port.training.v1.AwaitOperationRequest", request)
  end

  test "what the schema lacks is kept, and refused where a request has it" do
    bytes = <<0x0A, 1, "s", 0xFA, 0x01, 1, "?">>
    request = "crucible.port.training.v1.GetTrainingSessionRequest"
    assert {:ok, message} = Proto.decode(request, bytes)
    assert Proto.encode(request, message) == bytes
    assert Constraints.check(request, message) == :ok

    assert {:error, %{reason: "FIELD_UNKNOWN", fields: [{"#31", _}]}} =
             Constraints.check_unknown(request, message)
  end

  test "an enum's value that the schema lacks stays a number, and is refused" do
    assert {:ok, %{dtype: 99} = tensor} = Proto.decode(@tensor, <<0x08, 99, 0x1A, 0>>)
    assert {:error, error} = Constraints.check(@tensor, tensor)
    assert error.message =~ "dtype: 99 is not a value of crucible.type.v1.DType"
  end

  for {name, bytes} <- [
        cut: <<0x0A, 5, "ab">>,
        "endless varint": :binary.copy(<<0xFF>>, 11),
        "field zero": <<0x02, 0>>,
        "not UTF-8": <<0x0A, 1, 0xFF>>,
        "end of no group": <<0x0C>>,
        "wire type 7": <<0x0F>>
      ] do
    test "malformed: #{name}" do
      assert Proto.decode("crucible.port.training.v1.GetTrainingSessionRequest", unquote(bytes)) ==
               {:error, :malformed}
    end
  end

  test "messages inside messages without end are malformed, and end" do
    deep =
      Enum.reduce(1..150, "", fn _, inner ->
        <<0x32, Proto.Wire.put_varint(byte_size(inner))::binary, inner::binary>>
      end)

    assert Proto.decode("crucible.type.v1.Failure", deep) == {:error, :malformed}
  end

  test "more messages than anybody can look at are refused before they are read" do
    request = "crucible.port.training.v1.ForwardRequest"
    assert {:ok, %{data: data}} = Proto.decode(request, String.duplicate(<<0x1A, 0>>, 1000))
    assert length(data) == 1000
    many = Proto.max_messages() + 1
    assert Proto.decode(request, String.duplicate(<<0x1A, 0>>, many)) == {:error, :too_complex}

    assert Proto.decode(request, String.duplicate(<<0xF8, 0x07, 1>>, many)) ==
             {:error, :too_complex}
  end

  test "numbers that Erlang's floats cannot hold" do
    for {value, bits} <- [
          nan: 0x7FF8000000000000,
          infinity: 0x7FF0000000000000,
          negative_infinity: 0xFFF0000000000000
        ] do
      assert {:ok, %{learning_rate: ^value} = adam} =
               Proto.decode(@adam, <<0x09, bits::little-64>>)

      assert Proto.encode(@adam, adam) == <<0x09, bits::little-64>>
      assert {:error, %{reason: "FIELD_INVALID"}} = Constraints.check(@adam, adam)
    end
  end

  test "findings name paths, values and limits" do
    params = Proto.new(@params, max_tokens: 0, top_p: 1.5, stop_tokens: [1, -2])
    assert {:error, error} = Constraints.check(@params, params)

    assert error.fields == [
             {"max_tokens", "is 0, must be at least 1"},
             {"top_p", "is 1.5, must be at most 1"},
             {"stop_tokens[1]", "is -2, must be at least 0"}
           ]

    save =
      Proto.new("crucible.port.training.v1.SaveCheckpointRequest",
        name: "../x",
        sequence: 1,
        session_id: "s"
      )

    assert {:error, %{fields: [{"name", text}]}} =
             Constraints.check("crucible.port.training.v1.SaveCheckpointRequest", save)

    assert text =~ "'../x' must match"
    # A line's end is none: a pattern is of the whole string.
    assert {:error, _} =
             Constraints.check("crucible.port.training.v1.SaveCheckpointRequest", %{
               save
               | name: "x\n"
             })
  end
end
